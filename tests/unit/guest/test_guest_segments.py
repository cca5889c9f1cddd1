"""What is found in an initrd, and the mark that says it is prepared."""

from __future__ import annotations

import gzip
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.core.errors import UnsupportedError
from livemount.guest.cpio import Entry, archive
from livemount.guest.initrd import segments
from livemount.guest.initrd.segments import MARK_LENGTH, ORIGINAL_INIT, PreparedByHook, original_init, read_mark
from livemount.guest.rooted import Root

INIT = Entry.file("init", b"#!/bin/sh\necho the guest's own\n", 0o755)
MICROCODE = archive([Entry.file("kernel/x86/microcode/AuthenticAMD.bin", b"x" * 3001, 0o644)])


def packed(program: str, data: bytes) -> bytes:
    return subprocess.run([program, "-c"], input=data, check=True, capture_output=True).stdout


@pytest.mark.parametrize("program", ["gzip", "xz", "zstd"])
@pytest.mark.parametrize("before", [b"", MICROCODE + bytes(512)])
def test_the_original_init_is_found(program: str, before: bytes, tmp_path: Path) -> None:
    initrd = before + packed(program, archive([Entry.file("bin/sh", b"x", 0o755), INIT]) + bytes(512))
    found = original_init(memoryview(initrd), tmp_path)
    assert found.name == ORIGINAL_INIT
    assert found.data == INIT.data
    assert list(tmp_path.iterdir()) == []


def test_an_init_that_is_a_link_is_kept_as_one(tmp_path: Path) -> None:
    initrd = gzip.compress(archive([Entry.link("init", "usr/lib/systemd/systemd")]))
    found = original_init(memoryview(initrd), tmp_path)
    assert stat.S_ISLNK(found.mode)
    assert found.data == b"/usr/lib/systemd/systemd"


def test_an_initrd_made_by_the_hook_is_recognized(tmp_path: Path) -> None:
    initrd = gzip.compress(archive([Entry.file(ORIGINAL_INIT, b"x", 0o755), INIT]))
    with pytest.raises(PreparedByHook):
        original_init(memoryview(initrd), tmp_path)


@pytest.mark.parametrize(
    ("initrd", "message"),
    [
        (gzip.compress(archive([Entry.file("bin/sh", b"x", 0o755)])), "no /init"),
        (b"MZ" + bytes(1000), "unknown way"),
        (b"", "no /init"),
        (b"\x1f\x8b" + b"junk" * 100, "cannot be decompressed"),
        (gzip.compress(archive([Entry("init", stat.S_IFDIR | 0o755, b"")])), "neither"),
    ],
    # What gzip makes has the time in it, and names of tests must be the same in all processes.
    ids=["no init", "no archive", "empty", "damaged", "init is a folder"],
)
def test_what_cannot_be_kept_is_refused(initrd: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        original_init(memoryview(initrd), tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "LARGEST_UNPACKED", 1024 * 1024)
    with pytest.raises(UnsupportedError, match="more than 1048576 bytes"):
        original_init(memoryview(gzip.compress(bytes(64 * 1024 * 1024))), tmp_path)


@given(st.binary(max_size=MARK_LENGTH * 2))
def test_other_bytes_are_no_mark(tail: bytes) -> None:
    assert read_mark(tail) is None


def make_initrd(folder: Path) -> bytes:
    (folder / "boot").mkdir()
    data = gzip.compress(archive([INIT])) + b"\1"
    (folder / "boot/initrd.img-6.1").write_bytes(data)
    return data


def test_appending_marks_the_initrd_and_keeps_the_original(tmp_path: Path) -> None:
    original = make_initrd(tmp_path)
    path = "/boot/initrd.img-6.1"
    with Root.at(tmp_path) as root:
        segments.append(root, path, len(original), b"base", b"kern", "a" * 64)
        first = (tmp_path / "boot/initrd.img-6.1").read_bytes()
        assert first.startswith(original + bytes(-len(original) % 4) + b"basekern")
        assert len(first) % 4 == 0
        assert read_mark(first[-MARK_LENGTH:]) == (len(original), "a" * 64)
        segments.append(root, path, len(original), b"ba", b"kern", "b" * 64)
    second = (tmp_path / "boot/initrd.img-6.1").read_bytes()
    assert read_mark(second[-MARK_LENGTH:]) == (len(original), "b" * 64)
    assert len(second) < len(first)
    assert [path.name for path in (tmp_path / "boot").iterdir()] == ["initrd.img-6.1"]


def test_an_append_without_room_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make_initrd(tmp_path)
    monkeypatch.setattr(Root, "free", lambda *_: 100_000)
    with Root.at(tmp_path) as root, pytest.raises(UnsupportedError, match="no space in /boot"):
        segments.append(root, "/boot/initrd.img-6.1", len(original), bytes(200_000), b"", "a" * 64)
    assert (tmp_path / "boot/initrd.img-6.1").read_bytes() == original
