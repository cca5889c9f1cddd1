"""Initrd segments are what the system's cpio reads, and the reader survives anything."""

from __future__ import annotations

import gzip
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.core.errors import CorruptError
from livemount.guest.cpio import TRAILER, Entry, archive, compress, read

ENTRIES = [
    Entry.file("livemount/root/sbin/tool", b"#!/bin/sh\nexit 0\n", 0o755),
    Entry.file("livemount/empty", b"", 0o600),
    Entry.link("livemount/link", "/livemount/root/sbin/tool"),
]


def test_the_systems_cpio_unpacks_a_segment(tmp_path: Path) -> None:
    packed = compress(archive(ENTRIES), 6)
    assert len(packed) % 4 == 0
    plain = gzip.decompress(packed)
    subprocess.run(["cpio", "-id", "--quiet"], input=plain, cwd=tmp_path, check=True, capture_output=True)
    tool = tmp_path / "livemount/root/sbin/tool"
    assert tool.read_bytes() == ENTRIES[0].data
    assert stat.S_IMODE(tool.stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "livemount/empty").stat().st_mode) == 0o600
    assert (tmp_path / "livemount/link").readlink() == Path("/livemount/root/sbin/tool")


def test_reading_gives_back_what_was_written() -> None:
    found = [entry for entry, _ in read(memoryview(archive(ENTRIES)))]
    assert [entry.name for entry in found] == [
        *("livemount", "livemount/root", "livemount/root/sbin"),
        *("livemount/root/sbin/tool", "livemount/empty", "livemount/link", TRAILER),
    ]
    assert bytes(found[3].data) == ENTRIES[0].data


@given(st.binary(max_size=400))
def test_an_arbitrary_file_is_corrupt_and_no_crash(data: bytes) -> None:
    with pytest.raises(CorruptError):
        list(read(memoryview(b"070701" + data)))


@given(st.integers(min_value=0, max_value=len(archive(ENTRIES)) - 1))
def test_a_cut_off_archive_is_corrupt(length: int) -> None:
    data = archive(ENTRIES)[:length]
    # The padding behind the trailer may be missing: nothing is lost with it.
    whole = len(archive(ENTRIES).rstrip(b"\0")) + 1
    if length < whole:
        with pytest.raises(CorruptError):
            list(read(memoryview(data)))
