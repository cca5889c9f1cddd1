"""Partition tables of made disks, and which firmware could start them."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemount.core.errors import UnsupportedError
from livemount.core.machine import Firmware
from livemount.core.run import run
from livemount.guest.disk import add_removable_loader, bootable, needs_recovery, read_disk, read_volume

MIB = 1024 * 1024


def make_disk(path: Path, *arguments: str, size: int = 64 * MIB) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    if arguments:
        run("sgdisk", *arguments, path)
    return path


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def make_esp(disk: Path, offset: int, loader: str) -> None:
    run("mkfs.vfat", "-F", "16", "--offset", str(offset // 512), disk, str(32 * 1024))
    image = f"{disk}@@{offset}"
    (disk.parent / "loader").write_bytes(b"MZ a loader")
    run("mmd", "-i", image, "::/EFI", f"::/EFI/{loader.split('/')[0]}")
    run("mcopy", "-i", image, disk.parent / "loader", f"::/EFI/{loader}")


def test_partitions_and_what_is_on_them(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk1", "-n", "1:2048:+16M", "-n", "3:0:+16M", "-u", f"3:{'1234' * 8}")
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", "-E", f"offset={MIB}", disk, "16m")
    found = read_disk(disk)
    assert found.table == "gpt"
    assert [(p.number, p.start, p.size, p.filesystem) for p in found.partitions] == [
        (1, MIB, 16 * MIB, "ext4"),
        (3, 17 * MIB, 16 * MIB, None),
    ]
    first, third = found.partitions
    assert found.named("LABEL=data") == first
    assert found.named(f"UUID={first.uuid}") == first
    assert found.named(f'UUID="{first.uuid}"') == first
    assert found.named(f"/dev/disk/by-uuid/{first.uuid}") == first
    assert found.named("PARTUUID=12341234-1234-1234-1234-123412341234") == third
    assert found.named("/dev/vda1") == found.named("/dev/sda1") == found.named("/dev/nvme0n1p1") == first
    assert found.named("/dev/vdb1") is None
    assert found.named("UUID=other") is None
    assert found.named("tmpfs") is None


def test_logical_partitions_of_an_mbr(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw")
    run("sfdisk", disk, input="label: dos\nstart=2048, size=20480, bootable\ntype=5\nsize=20480\nsize=20480\n")
    assert [(p.number, p.legacy_boot) for p in read_disk(disk).partitions] == [(1, True), (5, False), (6, False)]


def test_a_disk_without_a_table_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw")
    with pytest.raises(UnsupportedError, match="no partition table"):
        read_disk(disk)
    run("mke2fs", "-q", "-t", "ext4", disk)
    with pytest.raises(UnsupportedError, match="one ext4 file system"):
        read_disk(disk)


def test_a_cut_off_disk_is_refused(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw")
    run("sfdisk", disk, input="label: dos\nstart=2048, size=102400\n")
    with disk.open("r+b") as file:
        file.truncate(20 * MIB)
    with pytest.raises(UnsupportedError, match="behind the end"):
        read_disk(disk)


def test_boot_code_alone_is_no_boot_loader(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw", "-n", "1:2048:+1M", "-t", "1:ef02")
    assert bootable(read_disk(disk)) == ([], None)
    put(disk, 0, b"\xeb\x63")
    assert bootable(read_disk(disk)) == ([], None)
    put(disk, MIB, b"core")
    assert bootable(read_disk(disk)) == ([Firmware.BIOS], None)


def test_the_removable_loader_is_enough_for_uefi(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw", "-n", "1:2048:+32M", "-t", "1:ef00")
    make_esp(disk, MIB, "boot/bootx64.efi")
    assert bootable(read_disk(disk)) == ([Firmware.UEFI], None)


def test_an_installed_loader_is_copied_to_the_removable_path(tmp_path: Path) -> None:
    disk = make_disk(tmp_path / "disk.raw", "-n", "1:2048:+32M", "-t", "1:ef00")
    make_esp(disk, MIB, "debian/grubx64.efi")
    found = read_disk(disk)
    assert bootable(found) == ([Firmware.UEFI], "EFI/debian/grubx64.efi")
    add_removable_loader(found, "EFI/debian/grubx64.efi", tmp_path)
    assert bootable(read_disk(disk)) == ([Firmware.UEFI], None)
    run("mcopy", "-i", f"{disk}@@{MIB}", "::/EFI/BOOT/BOOTX64.EFI", tmp_path / "copied")
    assert (tmp_path / "copied").read_bytes() == b"MZ a loader"


def test_a_volume_and_whether_its_journal_is_to_be_played_back(tmp_path: Path) -> None:
    volume = make_disk(tmp_path / "volume", size=16 * MIB)
    assert read_volume(volume) is None
    run("mke2fs", "-q", "-t", "ext4", "-L", "data", volume)
    found = read_volume(volume)
    assert found is not None
    (whole,) = found.partitions
    assert (whole.start, whole.size, whole.filesystem, found.named("LABEL=data")) == (0, 16 * MIB, "ext4", whole)
    assert not needs_recovery(found, whole)
    features = found.read(1024 + 0x60, 4)
    put(volume, 1024 + 0x60, bytes([features[0] | 0x4]))
    assert needs_recovery(found, whole)
    put(volume, 1024, bytes(1024))
    assert not needs_recovery(found, whole)
