"""Tells from a disk's first sectors which firmware can start it.

Everything read here comes from a guest's disk: counts and offsets are checked before they are used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from livemount.core.errors import UsageError
from livemount.core.machine import Firmware
from livemount.media.sources.file import read_error

SECTOR = 512
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
MBR_ESP = 0xEF
MBR_PROTECTIVE = 0xEE
LEGACY_BIOS_BOOTABLE = 1 << 2
MAX_ENTRIES = 1024


@dataclass(frozen=True)
class BootFacts:
    """What a disk offers to start from."""

    table: str | None
    """`gpt`, `mbr`, or none."""
    uefi: bool
    """It has an EFI system partition."""
    bios: bool
    """It has boot code, and where the table is GPT, a partition for it."""

    @property
    def firmware(self) -> Firmware:
        """BIOS where it can (it also boots where UEFI is not offered), else UEFI where it can, else BIOS."""
        return Firmware.UEFI if self.uefi and not self.bios else Firmware.BIOS


def detect_firmware(image: Path) -> Firmware:
    """The firmware that can start the disk in a raw image or block device.

    Raises `NotFoundError`, `DeniedError`, `UnavailableError` when it cannot be read, `UsageError`
    for a folder or a pipe.
    """
    try:
        # Before it is opened: opening a pipe would wait for its writer.
        image.stat()
        if not (image.is_file() or image.is_block_device()):
            raise UsageError(f"{image} is no disk image: it is not a regular file or block device")
        with image.open("rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            return detect(lambda offset, length: os.pread(file.fileno(), length, offset), size).firmware
    except OSError as error:
        raise read_error(image, error) from error


def detect(read: Callable[[int, int], bytes], size: int) -> BootFacts:
    """Look at a disk of `size` bytes. `read(offset, length)` gives its bytes."""
    if size < 2 * SECTOR:
        return BootFacts(None, uefi=False, bios=False)
    mbr = read(0, SECTOR)
    if mbr[510:] != b"\x55\xaa":
        return BootFacts(None, uefi=False, bios=False)
    code = any(mbr[:440])
    types = {mbr[offset + 4] for offset in range(446, 510, 16)}
    if MBR_PROTECTIVE in types:
        entries = list(_gpt_entries(read, size))
        uefi = any(kind == ESP for kind, _ in entries)
        for_bios = any(kind == BIOS_BOOT or flags & LEGACY_BIOS_BOOTABLE for kind, flags in entries)
        return BootFacts("gpt", uefi=uefi, bios=code and (for_bios or not uefi))
    return BootFacts("mbr", uefi=MBR_ESP in types, bios=code)


def _gpt_entries(read: Callable[[int, int], bytes], size: int) -> Iterator[tuple[UUID, int]]:
    """Type and attributes of each partition. The header lies in the second sector, of 512 or of 4096 bytes."""
    for sector in (512, 4096):
        if size < 2 * sector:
            return
        header = read(sector, 92)
        if header[:8] != b"EFI PART":
            continue
        first, count, length = struct.unpack_from("<QII", header, 72)
        start = first * sector
        if not (128 <= length <= 4096 and count <= MAX_ENTRIES and start + count * length <= size):
            return
        table = read(start, count * length)
        for offset in range(0, count * length, length):
            kind = UUID(bytes_le=table[offset : offset + 16])
            if kind.int:
                yield kind, struct.unpack_from("<Q", table, offset + 48)[0]
        return
