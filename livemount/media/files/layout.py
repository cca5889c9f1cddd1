"""Makes the disk of a tree: a sparse file with partition table, boot loaders and an ext4 file system's metadata.

sector 0        GRUB's boot.img in front of the protective MBR's table
1 MiB           BIOS boot partition: GRUB's core.img
2 MiB           EFI system partition: EFI/BOOT/BOOTX64.EFI
34 MiB          the root file system, whose files' data stay in the repository
"""

from __future__ import annotations

import errno
import os
import struct
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

from livemount._native import FilesDisk, FileTree
from livemount.core.errors import NoSpaceError, NotFoundError, UnavailableError, UnsupportedError
from livemount.core.run import run
from livemount.media.files.boot import plan_boot

SECTOR = 512
MIB = 1 << 20
CORE_START = MIB
ESP_START = 2 * MIB
ROOT_START = 34 * MIB
BEHIND = MIB
"""The backup of the partition table lies there."""
FREE_LEAST = 1 << 30
FREE_PART = 5
"""One of so many parts of the files' size is free, but not less than `FREE_LEAST`."""

GRUB = Path("/usr/lib/grub")
GRUB_MODULES = (
    *("part_gpt", "part_msdos", "ext2", "search", "search_fs_uuid", "search_fs_file"),
    *("search_label", "linux", "normal", "configfile", "test", "all_video"),
    *("gfxterm", "font", "gzio", "echo", "loadenv", "sleep"),
    *("terminal", "serial", "minicmd", "halt", "reboot", "true"),
    *("cat", "ls", "regexp"),
)
# Offsets in GRUB 2's boot.img and core.img, filled in as `grub-bios-setup` does (see livemount/image/disk.py).
BOOT_CODE = 440
KERNEL_SECTOR = 0x5C
DRIVE_CHECK = 0x66
BLOCK_LIST = SECTOR - 12
KERNEL_SEGMENT = 0x820
TIME = "1577836800"
"""2020-01-01, the time of every file in the ESP."""
FOLDER = Path("/var/tmp")  # noqa: S108 (a folder of its own is made in it)
"""Where the sparse file lies, without a name once it is made: not in memory, as /tmp may be."""


def synthesise(tree: FileTree) -> FilesDisk:
    """The disk that a tree becomes. Nothing of the files' data is read but what decides how it boots.

    Raises `UnsupportedError` for what ext4 cannot hold, `NotFoundError` when GRUB is not installed, `NoSpaceError`.
    """
    plan = plan_boot(tree)
    try:
        with TemporaryDirectory(prefix="livemount-files-", dir=FOLDER) as folder:
            work = Path(folder)
            disk = work / "disk.raw"
            disk.touch(0o600)
            size = tree.write(
                disk,
                ROOT_START,
                BEHIND,
                plan.uuid.bytes,
                plan.label.encode(),
                max(FREE_LEAST, tree.bytes // FREE_PART),
                [(path.encode(errors="surrogateescape"), content) for path, content in sorted(plan.files.items())],
                [(name.encode(), mode) for name, mode in sorted(plan.folders.items())],
            )
            _partition(disk, size, plan.uuid)
            early = work / "early.cfg"
            early.write_text(f"search.fs_uuid {plan.uuid} root\nset prefix=($root)/boot/grub\n")
            core, esp = _core(work, early), _esp(work, early)
            with disk.open("r+b") as file:
                _write_boot(file.fileno(), core)
                for start in range(0, len(esp), 4096):
                    part = esp[start : start + 4096]
                    if any(part):
                        os.pwrite(file.fileno(), part, ESP_START + start)
            return tree.disk(disk)
    except OSError as error:
        kind = NoSpaceError if error.errno in (errno.ENOSPC, errno.EDQUOT) else UnavailableError
        raise kind(f"cannot synthesise a disk in {FOLDER}: {error}") from error


def _partition(disk: Path, size: int, name: uuid.UUID) -> None:
    arguments = [f"--disk-guid={uuid.uuid5(name, 'disk')}", "--set-alignment=1"]
    parts = [(CORE_START, ESP_START, "ef02", "bios"), (ESP_START, ROOT_START, "ef00", "esp")]
    parts.append((ROOT_START, ROOT_START + size, "8300", "root"))
    for number, (start, end, code, label) in enumerate(parts, start=1):
        arguments += [
            f"--new={number}:{start // SECTOR}:{end // SECTOR - 1}",
            f"--typecode={number}:{code}",
            f"--change-name={number}:{label}",
            f"--partition-guid={number}:{uuid.uuid5(name, label)}",
        ]
    run("sgdisk", *arguments, disk)


def _core(work: Path, early: Path) -> bytes:
    if not (GRUB / "i386-pc/boot.img").is_file():
        raise NotFoundError(f"{GRUB}/i386-pc/boot.img is not there", hint="apt-get install grub-pc-bin")
    core = work / "core.img"
    run("grub-mkimage", "-O", "i386-pc", "-c", early, "-p", "/boot/grub", "-o", core, "biosdisk", *GRUB_MODULES)
    data = core.read_bytes()
    if len(data) > ESP_START - CORE_START:
        raise UnsupportedError(f"GRUB's core image has {len(data)} bytes: more than its partition holds")
    return data


def _write_boot(disk: int, core: bytes) -> None:
    first = CORE_START // SECTOR
    boot = bytearray((GRUB / "i386-pc/boot.img").read_bytes()[:BOOT_CODE])
    struct.pack_into("<Q", boot, KERNEL_SECTOR, first)
    boot[DRIVE_CHECK : DRIVE_CHECK + 2] = b"\x90\x90"
    os.pwrite(disk, boot, 0)
    body = bytearray(core)
    struct.pack_into("<QHH", body, BLOCK_LIST, first + 1, -(-len(core) // SECTOR) - 1, KERNEL_SEGMENT)
    os.pwrite(disk, body, CORE_START)


def _esp(work: Path, early: Path) -> bytes:
    if not (GRUB / "x86_64-efi").is_dir():
        raise NotFoundError(f"{GRUB}/x86_64-efi is not there", hint="apt-get install grub-efi-amd64-bin")
    loader = work / "BOOTX64.EFI"
    run("grub-mkimage", "-O", "x86_64-efi", "-c", early, "-p", "/boot/grub", "-o", loader, *GRUB_MODULES)
    image = work / "esp.img"
    with image.open("wb") as file:
        file.truncate(ROOT_START - ESP_START)
    run("mkfs.vfat", "--invariant", "-F", "16", "-i", "4C4D4650", "-n", "ESP", image)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": TIME, "TZ": "UTC", "MTOOLSRC": os.devnull}
    run("mmd", "-i", image, "::EFI", "::EFI/BOOT", env=environment)
    os.utime(loader, (int(TIME), int(TIME)))
    run("mcopy", "-m", "-i", image, loader, "::EFI/BOOT/BOOTX64.EFI", env=environment)
    return image.read_bytes()
