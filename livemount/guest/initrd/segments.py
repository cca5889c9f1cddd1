"""Appends our segments to an initrd: original, base (tools), kernel (modules, wrapper), mark.

Crash contract: before the first byte is appended the original length is noted in a journal file beside the initrd; the
journal goes when the mark is on the disk. A run that finds a journal cuts the initrd back and starts again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from livemount.core.errors import CorruptError, UnsupportedError
from livemount.guest.api import Edit, EditKind
from livemount.guest.cpio import MAGICS, TRAILER, Entry, archive, read
from livemount.guest.rooted import Root
from livemount.guest.tools import HOME_IN_INITRD
from livemount.guest.unpack import is_packed, unpack

LARGEST_INITRD = 1024 * 1024 * 1024
LARGEST_UNPACKED = 2 * LARGEST_INITRD
LARGEST_INIT = 1024 * 1024
ORIGINAL_INIT = f"{HOME_IN_INITRD}/init.original"
MARK = f"{HOME_IN_INITRD}/mark"


def _mark(original: int, digest: str) -> bytes:
    """The archive that ends a prepared initrd: always of one length, so that it is found from the end."""
    return archive([Entry.file(MARK, f"livemount 1 {original:016x} {digest}\n".encode(), 0o644)])


MARK_LENGTH = len(_mark(0, "0" * 64))


def read_mark(tail: bytes) -> tuple[int, str] | None:
    """The original length and the digest that a prepared initrd's last `MARK_LENGTH` bytes tell; `None`: no mark."""
    try:
        entries = [entry for entry, _ in read(memoryview(tail))]
    except CorruptError:
        return None
    for entry in entries:
        words = bytes(entry.data).decode(errors="replace").split()
        if entry.name == MARK and len(words) == 4 and words[:2] == ["livemount", "1"]:
            original, digest = int(words[2], 16), words[3]
            return (original, digest) if _mark(original, digest) == tail else None
    return None


class PreparedByHook(Exception):  # noqa: N818 (not an error: the guest's own tool has kept what we added)
    """The initrd was made anew in the guest, with our parts in it."""


def original_init(data: memoryview, scratch: Path) -> Entry:
    """The initrd's own `/init`, named as our wrapper will start it.

    Raises `PreparedByHook`, and `UnsupportedError` when there is none that could be kept.
    """
    found: Entry | None = None
    for entry in _entries(data, scratch):
        name = entry.name.removeprefix("./")
        if name == ORIGINAL_INIT:
            raise PreparedByHook
        if name == "init":
            found = entry
    if found is None:
        raise UnsupportedError("it holds no /init")
    content = bytes(found.data[: LARGEST_INIT + 1])
    if stat.S_ISLNK(found.mode):
        # The link lay in /, and now lies deeper.
        return Entry.link(ORIGINAL_INIT, str(PurePosixPath("/", content.decode(errors="surrogateescape"))))
    if not stat.S_ISREG(found.mode) or len(content) > LARGEST_INIT:
        raise UnsupportedError("its /init is neither a program of a plausible size nor a link")
    return Entry.file(ORIGINAL_INIT, content, 0o755)


def _entries(data: memoryview, scratch: Path) -> Iterator[Entry]:
    """The entries of all segments, up to and including the first compressed one (tools write none behind it)."""
    position = 0
    while position < len(data):
        head = bytes(data[position : position + 8])
        if head[:1] == b"\0":
            position += 1
        elif head[:6] in MAGICS:
            for entry, end in read(data, position):
                position = end
                if entry.name != TRAILER:
                    yield entry
        elif is_packed(head):
            plain = memoryview(unpack(data[position:], LARGEST_UNPACKED, scratch, tolerant=True))
            yield from _entries(plain, scratch)
            return
        else:
            raise UnsupportedError("it is compressed in an unknown way, or not an initrd")


def append(root: Root, path: str, original: int, base: bytes, kernel: bytes, digest: str) -> None:
    """Append the segments to the first `original` bytes of the initrd, and the mark.

    Raises `UnsupportedError` when its file system has no room.
    """
    journal = journal_of(path)
    payload = bytes(-original % 4) + base + kernel + _mark(original, digest)
    folder = str(PurePosixPath(path).parent)
    descriptor = root.open(path, os.O_RDWR)
    with os.fdopen(descriptor, "r+b") as file:
        have = os.fstat(descriptor).st_size
        spare = root.free(folder) + max(0, have - original)
        if spare < len(payload) + 64 * 1024:
            raise UnsupportedError(
                f"no space in {folder} of the guest: {path} must grow by {len(payload)} bytes, {spare} are free"
            )
        root.write(journal, f"{original}\n".encode())
        file.truncate(original)
        file.seek(original)
        file.write(payload)
        file.flush()
        os.fsync(descriptor)
    root.remove(journal)
    root.edits = [edit for edit in root.edits if edit.path != journal]
    size = original + len(payload)
    root.edits.append(Edit(path=path, kind=EditKind.CHANGED, before=have, after=size))


def journal_of(path: str) -> str:
    """Where an append that is under way notes the original length."""
    pure = PurePosixPath(path)
    return str(pure.with_name(f".{pure.name}.livemount-journal"))
