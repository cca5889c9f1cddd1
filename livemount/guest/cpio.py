"""Reads and writes initrd segments: cpio archives of the `newc` kind, as the Linux kernel unpacks them.

The format is in the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from livemount.core.errors import CorruptError

MAGICS = (b"070701", b"070702")
HEADER = 110
TRAILER = "TRAILER!!!"
LONGEST_NAME = 4096
GZIP = 16 + zlib.MAX_WBITS
"""zlib's word for a gzip header; it writes no time into it, so the same archive gives the same bytes."""


@dataclass(frozen=True)
class Entry:
    """One file, folder or symbolic link; `name` has no leading slash, a link's `data` is its target."""

    name: str
    mode: int
    data: bytes | memoryview

    @staticmethod
    def file(name: str, data: bytes, permissions: int) -> Entry:
        """A regular file."""
        return Entry(name, stat.S_IFREG | permissions, data)

    @staticmethod
    def link(name: str, target: str) -> Entry:
        """A symbolic link."""
        return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def _pad(length: int) -> int:
    return -length % 4


def _record(number: int, name: str, mode: int, data: bytes | memoryview) -> bytes:
    encoded = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return head + bytes(_pad(len(head))) + bytes(data) + bytes(_pad(len(data)))


def archive(entries: Iterable[Entry]) -> bytes:
    """A plain archive, of a length divisible by 4; folders on the way to an entry come before it."""
    parts: list[bytes] = []
    folders: set[str] = set()
    for entry in entries:
        for parent in reversed(PurePosixPath(entry.name).parents):
            folder = str(parent)
            if folder != "." and folder not in folders:
                folders.add(folder)
                parts.append(_record(len(parts) + 1, folder, stat.S_IFDIR | 0o755, b""))
        parts.append(_record(len(parts) + 1, entry.name, entry.mode, entry.data))
    parts.append(_record(0, TRAILER, 0, b""))
    return b"".join(parts)


def compress(plain: bytes, level: int) -> bytes:
    """An archive as a gzip-compressed segment padded to 4 bytes: it may be appended to any initrd."""
    packer = zlib.compressobj(level, zlib.DEFLATED, GZIP)
    packed = packer.compress(plain) + packer.flush()
    return packed + bytes(_pad(len(packed)))


def read(data: memoryview, start: int = 0) -> Iterator[tuple[Entry, int]]:
    """The entries of the plain archive at `start`, each with the offset behind it; the trailer comes last.

    Raises `CorruptError` when it is cut off or malformed.
    """
    position = start
    while True:
        head = bytes(data[position : position + HEADER])
        if len(head) < HEADER or head[:6] not in MAGICS:
            raise CorruptError(f"the initrd's archive is malformed at byte {position}")
        try:
            fields = [int(head[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        except ValueError as error:
            raise CorruptError(f"the initrd's archive has a bad header at byte {position}") from error
        mode, size, name_size = fields[1], fields[6], fields[11]
        body = position + HEADER + name_size
        body += _pad(body - start)
        end = body + size + _pad(size)
        if not 1 <= name_size <= LONGEST_NAME or body + size > len(data):
            raise CorruptError(f"the initrd's archive is cut off at byte {position}")
        name = bytes(data[position + HEADER : position + HEADER + name_size - 1]).decode(errors="surrogateescape")
        end = min(end, len(data))
        yield Entry(name, mode, data[body : body + size]), end
        if name == TRAILER:
            return
        position = end
