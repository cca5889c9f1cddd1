"""The ledger of a folder of recall stores: what workers keep and how much more they may, in one mapped file.

Workers add to KEPT what they are about to keep, and keep nothing that would bring it above LIMIT. KEPT only grows: it
says nothing by itself. The supervisor measures the stores and sets LIMIT to KEPT, as it was before the measuring, plus
the room that is left; so a killed worker's entry costs nothing, and what was being written while it measured may
exceed the quota, until the next measuring, by that much and no more.
"""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from pathlib import Path

from livemount.core.errors import CorruptError
from livemount.core.files import replace_file

SIZE = 4096
NO_LIMIT = 2**64 - 1


class Entry(IntEnum):
    """Places in the file (u64 each); `native/pseudo-disk/src/ledger.rs` has the same."""

    KEPT = 0
    """Bytes, since the ledger was made."""
    LIMIT = 1
    """What KEPT may come to."""
    NOT_KEPT = 2
    """Chunks that were recalled and not kept, for want of room."""
    EVICTIONS = 3
    """Stores that had to go."""


class Ledger:
    """The ledger of one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".ledger"

    def make(self) -> None:
        """Make it where it is not there, without a limit. The caller holds the folder's lock."""
        if not self._path.exists():
            replace_file(self._path, struct.pack("<QQ", 0, NO_LIMIT).ljust(SIZE, b"\0"))

    def read(self) -> dict[Entry, int]:
        """The entries as they are now. Raises `CorruptError`."""
        content = self._path.read_bytes()
        if len(content) != SIZE:
            raise CorruptError(f"{self._path} is damaged", hint="end all mounts, then delete it")
        words = struct.unpack_from(f"<{len(Entry)}Q", content)
        return {entry: words[entry] for entry in Entry}

    def write(self, entry: Entry, value: int) -> None:
        """Set an entry that no worker sets."""
        with self._path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), struct.pack("<Q", min(value, NO_LIMIT)), 8 * entry)
