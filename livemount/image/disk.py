"""Lays out the machine image: a 16 MiB raw disk that starts iPXE with its script under BIOS and under UEFI.

Run by Packer (packer/machine-image.pkr.hcl) as `python -m livemount.image.disk`. The bytes depend on the input only:
GUIDs, serial number and times are fixed, so an equal input has an equal digest.

    sector 0       GRUB's boot.img in front of the protective MBR's table
    34..2047       GRUB's core.img: loads ipxe.lkrn with the script as its initrd (BIOS)
    2048..         EFI system partition: ipxe.lkrn, EFI/BOOT/BOOTX64.EFI (= ipxe.efi), autoexec.ipxe
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
from pathlib import Path
from tempfile import TemporaryDirectory

from livemount.core.errors import NotFoundError, UnsupportedError
from livemount.core.run import run

SECTOR = 512
IMAGE_SIZE = 16 << 20
CORE_SECTOR = 34
ESP_SECTOR = 2048
ESP_SECTORS = IMAGE_SIZE // SECTOR - ESP_SECTOR - 33  # the backup GPT is in the last 33 sectors

GRUB = Path("/usr/lib/grub/i386-pc")
GRUB_MODULES = ("biosdisk", "part_gpt", "fat", "linux16")
GRUB_CONFIG = "linux16 $prefix/ipxe.lkrn\ninitrd16 $prefix/autoexec.ipxe\nboot\n"

# Offsets in GRUB 2's boot.img and diskboot.img (include/grub/i386/pc/boot.h), which `grub-bios-setup` fills in too;
# that program is not used because it wants a block device and looks at the machine's own disks.
BOOT_CODE = 440
KERNEL_SECTOR = 0x5C
DRIVE_CHECK = 0x66
BLOCK_LIST = SECTOR - 12
KERNEL_SEGMENT = 0x820

DISK_GUID = "6c697665-6d6f-4e74-8000-000000000000"
PARTITION_GUIDS = ("6c697665-6d6f-4e74-8000-000000000001", "6c697665-6d6f-4e74-8000-000000000002")
FAT_SERIAL = "4C4D4950"
TIME = "1577836800"
"""2020-01-01, the time of every file in the ESP."""


def make_disk(lkrn: Path, efi: Path, script: Path, output: Path) -> None:
    """Write the image to `output`. Raises `NotFoundError` when iPXE or GRUB is not there."""
    for file in (lkrn, efi, script, GRUB / "boot.img"):
        if not file.is_file():
            raise NotFoundError(f"{file} is needed for the machine image but is not there", hint="run `make setup`")
    with TemporaryDirectory(prefix="livemount-image-") as folder:
        work = Path(folder)
        esp = _make_esp(work, lkrn, efi, script)
        core = _make_core(work)
        with output.open("wb") as disk:
            disk.truncate(IMAGE_SIZE)
        _partition(output)
        with output.open("r+b") as disk:
            _write_boot(disk.fileno(), core)
            os.pwrite(disk.fileno(), esp, ESP_SECTOR * SECTOR)
            os.fsync(disk.fileno())


def _partition(disk: Path) -> None:
    run(
        "sgdisk",
        "--set-alignment=1",
        f"--new=1:{CORE_SECTOR}:{ESP_SECTOR - 1}",
        "--typecode=1:ef02",
        f"--partition-guid=1:{PARTITION_GUIDS[0]}",
        f"--new=2:{ESP_SECTOR}:{ESP_SECTOR + ESP_SECTORS - 1}",
        "--typecode=2:ef00",
        f"--partition-guid=2:{PARTITION_GUIDS[1]}",
        f"--disk-guid={DISK_GUID}",
        disk,
    )


def _make_core(work: Path) -> bytes:
    config = work / "grub.cfg"
    config.write_text(GRUB_CONFIG)
    core = work / "core.img"
    run("grub-mkimage", "-O", "i386-pc", "-p", "(,gpt2)", "-c", config, "-o", core, *GRUB_MODULES)
    data = core.read_bytes()
    if len(data) > (ESP_SECTOR - CORE_SECTOR) * SECTOR:
        raise UnsupportedError(f"GRUB's core image has {len(data)} bytes: more than its partition holds")
    return data


def _write_boot(disk: int, core: bytes) -> None:
    boot = bytearray((GRUB / "boot.img").read_bytes()[:BOOT_CODE])
    struct.pack_into("<Q", boot, KERNEL_SECTOR, CORE_SECTOR)
    boot[DRIVE_CHECK : DRIVE_CHECK + 2] = b"\x90\x90"  # believe the drive number the BIOS passes, as for any hard disk
    os.pwrite(disk, boot, 0)
    body = bytearray(core)
    rest = -(-len(core) // SECTOR) - 1
    struct.pack_into("<QHH", body, BLOCK_LIST, CORE_SECTOR + 1, rest, KERNEL_SEGMENT)
    os.pwrite(disk, body, CORE_SECTOR * SECTOR)


def _make_esp(work: Path, lkrn: Path, efi: Path, script: Path) -> bytes:
    tree = {
        "ipxe.lkrn": lkrn,
        "autoexec.ipxe": script,
        "EFI/BOOT/BOOTX64.EFI": efi,
    }
    image = work / "esp.img"
    with image.open("wb") as file:
        file.truncate(ESP_SECTORS * SECTOR)
    run("mkfs.vfat", "--invariant", "-F", "16", "-i", FAT_SERIAL, "-n", "LIVEMOUNT", image)
    env = {**os.environ, "SOURCE_DATE_EPOCH": TIME, "TZ": "UTC", "MTOOLSRC": os.devnull}
    run("mmd", "-i", image, "::EFI", "::EFI/BOOT", env=env)
    for name, source in tree.items():
        staged = work / Path(name).name
        shutil.copyfile(source, staged)
        run("mcopy", "-i", image, staged, f"::{name}", env=env)
    return image.read_bytes()


def main() -> None:
    """`python -m livemount.image.disk --lkrn FILE --efi FILE --script FILE --output FILE`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("lkrn", "efi", "script", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    options = parser.parse_args()
    make_disk(options.lkrn, options.efi, options.script, options.output)


if __name__ == "__main__":
    main()
