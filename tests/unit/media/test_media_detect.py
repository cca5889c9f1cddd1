"""The firmware of a disk is told from its first sectors, whatever is in them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.core.errors import NotFoundError, UsageError
from livemount.core.machine import Firmware
from livemount.media.detect import BootFacts, detect, detect_firmware

SIZE = 64 << 20


def facts(data: bytes, size: int = SIZE) -> BootFacts:
    content = data.ljust(size, b"\0")
    return detect(lambda offset, length: content[offset : offset + length], size)


def with_code(data: bytes) -> bytes:
    return b"\xeb\x63\x90" + data[3:]


def mbr(kind: int) -> bytes:
    return bytes(446) + bytes([0x80, 0, 0, 0, kind, 0, 0, 0]) + bytes(8 + 48) + b"\x55\xaa"


def gpt(folder: Path, *types: str) -> bytes:
    path = folder / "disk.raw"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE)
    words = [word for kind in types for word in ("--new=0:0:+1M", f"--typecode=0:{kind}")]
    subprocess.run(["sgdisk", "--clear", *words, path], check=True, stdout=subprocess.DEVNULL)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("types", "code", "expected"),
    [
        (["ef00", "8300"], False, BootFacts("gpt", uefi=True, bios=False)),
        (["ef02", "ef00", "8300"], True, BootFacts("gpt", uefi=True, bios=True)),
        (["ef02", "8300"], True, BootFacts("gpt", uefi=False, bios=True)),
        (["ef02", "ef00"], False, BootFacts("gpt", uefi=True, bios=False)),
        (["ef00", "8300"], True, BootFacts("gpt", uefi=True, bios=False)),
        (["8300"], False, BootFacts("gpt", uefi=False, bios=False)),
    ],
)
def test_gpt(tmp_path: Path, types: list[str], code: bool, expected: BootFacts) -> None:
    disk = gpt(tmp_path, *types)
    found = facts(with_code(disk) if code else disk)
    assert found == expected
    assert found.firmware == (Firmware.UEFI if expected.uefi and not expected.bios else Firmware.BIOS)


def test_mbr() -> None:
    assert facts(with_code(mbr(0x83))) == BootFacts("mbr", uefi=False, bios=True)
    assert facts(mbr(0xEF)) == BootFacts("mbr", uefi=True, bios=False)
    assert facts(mbr(0x83)) == BootFacts("mbr", uefi=False, bios=False)


def test_an_image_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(mbr(0xEF))
    assert detect_firmware(path) == Firmware.BIOS  # cut off behind its first sector: nothing to go by
    path.write_bytes(mbr(0xEF) + bytes(512))
    assert detect_firmware(path) == Firmware.UEFI
    with pytest.raises(NotFoundError, match="absent"):
        detect_firmware(tmp_path / "absent")
    with pytest.raises(UsageError, match="not a regular file"):
        detect_firmware(tmp_path)


def test_no_table() -> None:
    assert facts(b"") == facts(b"", 512) == BootFacts(None, uefi=False, bios=False)


@given(st.binary(max_size=92), st.integers(0, 64))
def test_any_gpt_header_is_survived(header: bytes, tail: int) -> None:
    disk = mbr(0xEE) + b"EFI PART" + header
    assert facts(disk, 4096 + 512 * tail).table == "gpt"
