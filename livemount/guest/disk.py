"""What lies on a disk file: partition table, file systems, and which firmware can start it. Nothing is mounted here."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livemount.core.errors import LivemountError, UnsupportedError
from livemount.core.machine import Firmware
from livemount.core.run import CommandError, run

MOST_PARTITIONS = 256
ESP_TYPES = ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef")
FIRST_DISK = re.compile(r"/dev/(?:(?:sd|hd|vd|xvd)a|nvme0n1p|mmcblk0p)([0-9]{1,3})")
"""Names that the kernel gives to partitions of a machine's first disk: another hypervisor, another name."""
BIOS_BOOT_TYPE = "21686148-6449-6e6f-744e-656564454649"
EXTENDED_TYPES = ("5", "f", "85")
MBR_CODE = 440
SUPERBLOCK = 1024
"""Where ext2, ext3 and ext4 have theirs; the fields below as in the kernel's Documentation/filesystems/ext4."""
EXT_MAGIC = b"\x53\xef"
NEEDS_RECOVERY = 0x4
REMOVABLE_LOADER = "EFI/BOOT/BOOTX64.EFI"
"""The path firmware starts when it remembers nothing of a disk (UEFI 2.10, 3.5.1.1)."""
KNOWN_LOADERS = ("grubx64.efi", "shimx64.efi", "systemd-bootx64.efi")


@dataclass(frozen=True)
class Partition:
    """A partition and the file system on it; `start` and `size` are bytes."""

    number: int
    start: int
    size: int
    type: str
    legacy_boot: bool
    part_uuid: str
    filesystem: str | None
    uuid: str | None
    label: str | None

    def __str__(self) -> str:
        return f"{self.filesystem or 'nothing known'} (partition {self.number})"


@dataclass(frozen=True)
class Disk:
    """A disk file and its partition table (`gpt` or `dos`)."""

    path: Path
    size: int
    table: str
    partitions: tuple[Partition, ...]

    def read(self, start: int, length: int) -> bytes:
        """Bytes of the disk."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def named(self, name: str) -> Partition | None:
        """The partition that an fstab names: by `UUID=`, `LABEL=`, `PARTUUID=`, or as one of the first disk's."""
        device = FIRST_DISK.fullmatch(name)
        kind, _, value = name.replace('"', "").partition("=")
        if not value and name.startswith("/dev/disk/by-"):
            kind, _, value = name.removeprefix("/dev/disk/by-").partition("/")
        kind = kind.upper()
        for partition in self.partitions:
            if (
                (kind == "UUID" and value == partition.uuid)
                or (kind == "LABEL" and value == partition.label)
                or (kind == "PARTUUID" and value.lower() == partition.part_uuid)
                or (device is not None and int(device[1]) == partition.number)
            ):
                return partition
        return None


def read_disk(path: Path) -> Disk:
    """Read the partition table and ask what is on each partition.

    Raises `UnsupportedError` for a disk without a table, or with one that names more than the disk has.
    """
    size = path.stat().st_size
    try:
        table = json.loads(run("sfdisk", "--json", path).stdout)["partitiontable"]
    except CommandError as error:
        seen = _probe(path, 0, size).get("TYPE")
        raise UnsupportedError(
            f"the disk {path} has no partition table" + (f" (it is one {seen} file system)" if seen else ""),
            hint="only partitioned disks (GPT or MBR) can be booted",
        ) from error
    if table["label"] not in ("gpt", "dos"):
        raise UnsupportedError(f"the disk {path} has a partition table of the kind {table['label']!r}, not GPT or MBR")
    sector = int(table.get("sectorsize", 512))
    described = table.get("partitions", [])
    if len(described) > MOST_PARTITIONS:
        raise UnsupportedError(f"the disk {path} has {len(described)} partitions, more than {MOST_PARTITIONS}")
    partitions = [
        _partition(path, size, sector, entry) for entry in described if entry["type"].lower() not in EXTENDED_TYPES
    ]
    return Disk(path, size, table["label"], tuple(partitions))


def read_further_disk(path: Path) -> Disk:
    """Of a disk that nothing starts from: it may be one file system as a whole, which is its only partition, 0."""
    try:
        return read_disk(path)
    except UnsupportedError:
        return read_volume(path) or Disk(path, path.stat().st_size, "", ())


def read_volume(path: Path) -> Disk | None:
    """A file that is one file system, without a partition table, as a disk with one partition; `None` for others."""
    size = path.stat().st_size
    seen = _probe(path, 0, size)
    if "TYPE" not in seen:
        return None
    whole = Partition(0, 0, size, "", False, "", seen["TYPE"], seen.get("UUID"), seen.get("LABEL"))
    return Disk(path, size, "", (whole,))


def needs_recovery(disk: Disk, partition: Partition) -> bool:
    """Whether an ext3 or ext4 file system has a journal that is to be played back: it was in use."""
    superblock = disk.read(partition.start + SUPERBLOCK, 1024)
    if len(superblock) < 1024 or superblock[0x38:0x3A] != EXT_MAGIC:
        return False
    return bool(int.from_bytes(superblock[0x60:0x64], "little") & NEEDS_RECOVERY)


def _partition(path: Path, disk_size: int, sector: int, entry: dict[str, Any]) -> Partition:
    number = int(entry["node"].removeprefix(str(path)).lstrip("p"))
    start, size = int(entry["start"]) * sector, int(entry["size"]) * sector
    if start + size > disk_size:
        raise UnsupportedError(f"partition {number} of {path} ends behind the end of the disk: was the copy cut off?")
    seen = _probe(path, start, size)
    return Partition(
        number=number,
        start=start,
        size=size,
        type=entry["type"].lower(),
        legacy_boot="LegacyBIOSBootable" in entry.get("attrs", "") or bool(entry.get("bootable")),
        part_uuid=entry.get("uuid", "").lower(),
        filesystem=seen.get("TYPE"),
        uuid=seen.get("UUID"),
        label=seen.get("LABEL"),
    )


def _probe(path: Path, start: int, size: int) -> dict[str, str]:
    # Exit code 2: nothing found; 8: two kinds at once, which is nothing we could trust.
    told = run(
        *("blkid", "--probe", "--usages", "filesystem,raid,crypto,other", "--output", "export"),
        *("--offset", str(start), "--size", str(size), path),
        check=False,
    )
    return dict(line.split("=", 1) for line in told.stdout.splitlines() if "=" in line)


def bootable(disk: Disk) -> tuple[list[Firmware], str | None]:
    """The firmware the disk can boot under, and the EFI loader to put at the removable path when none is there.

    BIOS: a boot loader in the first sector. UEFI: a loader on the EFI system partition; what an installer wrote into
    the old machine's NVRAM is not on the disk, so a loader of a known name counts, but must be copied.
    """
    found = []
    code = disk.read(0, MBR_CODE)
    if disk.table == "dos":
        bios = any(code) and (b"GRUB" in code or any(partition.legacy_boot for partition in disk.partitions))
    else:
        bios = any(code) and any(
            partition.legacy_boot or (partition.type == BIOS_BOOT_TYPE and any(disk.read(partition.start, 512)))
            for partition in disk.partitions
        )
    if bios:
        found.append(Firmware.BIOS)
    loader = None
    system_partition = efi_partition(disk)
    if system_partition is not None:
        loader = _loader(disk, system_partition)
        if loader is not None:
            found.append(Firmware.UEFI)
    return found, None if loader == REMOVABLE_LOADER else loader


def efi_partition(disk: Disk) -> Partition | None:
    """The EFI system partition with a FAT file system, if there is one."""
    for partition in disk.partitions:
        if partition.type in ESP_TYPES and partition.filesystem == "vfat":
            return partition
    return None


def add_removable_loader(disk: Disk, loader: str, scratch: Path) -> None:
    """Copy a loader of the EFI system partition to the path that every firmware tries."""
    partition = efi_partition(disk)
    if partition is None:
        raise LivemountError(f"{disk.path} has no EFI system partition")
    copy = scratch / "loader.efi"
    _mtools("mcopy", disk, partition, "-n", f"::/{loader}", str(copy))
    if "BOOT" not in {name.upper() for name in _fat_names(disk, partition, "EFI")}:
        _mtools("mmd", disk, partition, "::/EFI/BOOT")
    _mtools("mcopy", disk, partition, "-n", str(copy), f"::/{REMOVABLE_LOADER}")
    copy.unlink()


def _loader(disk: Disk, partition: Partition) -> str | None:
    for folder in sorted(_fat_names(disk, partition, "EFI"), key=lambda name: name.upper() != "BOOT"):
        names = {name.lower(): name for name in _fat_names(disk, partition, f"EFI/{folder}")}
        if folder.upper() == "BOOT":
            if "bootx64.efi" in names:
                return REMOVABLE_LOADER
            continue
        for known in KNOWN_LOADERS:
            if known in names:
                return f"EFI/{folder}/{names[known]}"
    return None


def _fat_names(disk: Disk, partition: Partition, folder: str) -> list[str]:
    listed = _mtools("mdir", disk, partition, "-b", f"::/{folder}", check=False)
    return [line.rstrip("/").rpartition("/")[2] for line in listed.splitlines() if line.startswith("::/")]


def _mtools(program: str, disk: Disk, partition: Partition, *arguments: str, check: bool = True) -> str:
    """mtools reads FAT without mounting it (the kernel may have no FAT, and needs not parse a stranger's)."""
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1"}
    image = f"{disk.path}@@{partition.start}"
    return run(program, "-i", image, *arguments, env=environment, check=check, timeout=60).stdout
