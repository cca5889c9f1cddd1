"""A FUSE file system of one folder's files whose reads fail on demand: a source that has its troubles.

`python -m tests.support.faulty_fs MOUNT_POINT FOLDER`. Orders, written to `.control`: `gone`, `back`; `delay SECONDS`
for each read; `bad OFFSET LENGTH` for a range at which files seem to end, and `good`.
"""

from __future__ import annotations

import errno
import io
import struct
import sys
import time
from pathlib import Path

from tests.support.logged_fs import DIRECT_IO, LoggedFs, serve


class FaultyFs(LoggedFs):
    """The kernel keeps nothing of its files."""

    valid = 0

    def __init__(self, folder: Path) -> None:
        super().__init__(io.BytesIO(), folder)
        self._gone = False
        self._delay = 0.0
        self._bad = (0, 0)

    def control(self, text: str) -> None:
        """See the module."""
        match text.split():
            case ["gone" | "back" as word]:
                self._gone = word == "gone"
            case ["delay", seconds]:
                self._delay = float(seconds)
            case ["bad", offset, length]:
                self._bad = (int(offset), int(offset) + int(length))
            case ["good"]:
                self._bad = (0, 0)

    def lookup(self, node: int, body: bytes) -> bytes:
        """LOOKUP."""
        if self._gone and body != b".control\0":
            raise FileNotFoundError(errno.ENOENT, "")
        return super().lookup(node, body)

    def open(self, _node: int, _body: bytes) -> bytes:
        """OPEN."""
        return struct.pack("<QII", 0, DIRECT_IO, 0)

    def read(self, node: int, body: bytes) -> bytes:
        """READ."""
        if self._gone:
            raise OSError(errno.EIO, "")
        if self._delay:
            time.sleep(self._delay)
        data = super().read(node, body)
        (offset,) = struct.unpack_from("<Q", body, 8)
        first, end = self._bad
        return data[: max(0, first - offset)] if offset < end and first < offset + len(data) else data


if __name__ == "__main__":
    serve(Path(sys.argv[1]), FaultyFs(Path(sys.argv[2])))
