"""What a disk may hold after a power cut, from the log of `logged_fs`; and what a pseudo-disk may then answer.

A write may have reached the disk or not, in any order with others, torn between sectors of 512 bytes, until a sync of
its file; a write before a failed sync stays uncertain until its sector is written and synced again. Changes of
folders reach the disk in their order, as many of them as may be, until a sync of a folder makes certain all before it.
"""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

from tests.support.logged_fs import load
from tests.support.mounted_fs import MountedFs
from tests.support.sparse import SparseFile

SECTOR = 512
Piece = tuple[int, bytes | None]
"""Offset and bytes, or a cut at that offset."""
Record = tuple[Any, ...]


class LoggedFolder(MountedFs):
    """A mounted `logged_fs`."""

    def __init__(self, work: Path, initial: Path | None = None) -> None:
        work.mkdir()
        self._log = work / "log"
        super().__init__("tests.support.logged_fs", work / "mount", self._log, *([] if initial is None else [initial]))

    def end(self) -> list[Record]:
        """Unmount; what happened."""
        self.close()
        records = []
        with self._log.open("rb") as file:
            while True:
                try:
                    records.append(pickle.load(file))  # noqa: S301  (our own)
                except EOFError:
                    return records


class DiskFile:
    """A file: what is certain of it, and what is not."""

    def __init__(self, content: SparseFile) -> None:
        self.certain = content
        self.sizes: list[int] = []
        self.pending: list[Piece] = []
        self.doubtful: dict[int, bytes] = {}

    def size(self) -> int:
        """The size a reader sees."""
        return self.sizes[-1] if self.sizes else self.certain.size

    def write(self, offset: int, data: bytes) -> None:
        """A write that may still be lost."""
        if offset + len(data) > self.size():
            self.sizes.append(offset + len(data))
        self.pending.append((offset, data))

    def resize(self, size: int) -> None:
        """What is cut off is zero when it comes back."""
        if size < self.size():
            self.pending.append((size, None))
        self.sizes.append(size)

    def sync(self) -> None:
        """All is certain now."""
        size = self.size()
        for offset, data in self.pending:
            if data is None:
                self.certain.resize(offset)
                continue
            self.certain.write(offset, data)
            for sector in range(offset // SECTOR, -(-(offset + len(data)) // SECTOR)):
                self.doubtful.pop(sector, None)
        self.certain.resize(size)
        self.pending, self.sizes = [], []

    def sync_failed(self) -> None:
        """What was written may be there or not, whatever a later sync says."""
        for offset, data in self.pending:
            if data is not None:
                for at in range(0, len(data), SECTOR):
                    self.doubtful[(offset + at) // SECTOR] = data[at : at + SECTOR]
        self.certain.resize(self.size())
        self.pending, self.sizes = [], []

    def pieces(self, mode: str, chance: random.Random) -> tuple[int, list[Piece]]:
        """A size and the uncertain writes that reached the disk, in order."""
        doubtful: list[Piece] = [(sector * SECTOR, data) for sector, data in self.doubtful.items()]
        match mode:
            case "all":
                return self.size(), doubtful + self.pending
            case "none":
                return self.certain.size, []
            case "last":
                return self.size(), self.pending[-1:]
        size = chance.choice([self.certain.size, *self.sizes])
        pieces = [piece for piece in doubtful if chance.random() < 0.5]
        keep = chance.choice([0.1, 0.5, 0.9])
        for offset, data in self.pending:
            if data is not None and (mode == "sectors" or chance.random() < 0.3):
                for at in range(0, len(data), SECTOR):
                    if chance.random() < keep:
                        pieces.append((offset + at, data[at : at + SECTOR]))
            elif chance.random() < keep:
                pieces.append((offset, data))
        return size, pieces

    def materialise(self, path: Path, mode: str, chance: random.Random) -> None:
        """Write the file as a power cut may leave it."""
        size, pieces = self.pieces(mode, chance)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for offset, data in [*self.certain.runs(), *pieces]:
                if data is None:
                    os.truncate(file, offset)
                else:
                    os.pwrite(file, data, offset)
            os.truncate(file, size)
        finally:
            os.close(file)


MODES = ("all", "none", "last", "ops", "sectors")


class DiskState:
    """The file system's disk as the log goes on."""

    def __init__(self, initial: Path | None = None) -> None:
        self.files: dict[int, DiskFile] = {}
        self.folders: dict[int, dict[str, int]] = {1: {}}
        self._changes: list[Record] = []
        self._next = 3
        if initial is not None:
            self._load(initial, 1)

    def _load(self, folder: Path, inode: int) -> None:
        for path in sorted(folder.iterdir()):
            child = self._next
            self._next += 1
            self.folders[inode][path.name] = child
            if path.is_dir():
                self.folders[child] = {}
                self._load(path, child)
            else:
                self.files[child] = DiskFile(load(path))

    def inode(self, path: str) -> int:
        """The inode of a file that was there at the start."""
        inode = 1
        for name in path.split("/"):
            inode = self.folders[inode][name]
        return inode

    def apply(self, record: Record) -> None:
        """Follow one record of the log."""
        match record:
            case ("write", inode, offset, data):
                self.files[inode].write(offset, data)
            case ("size", inode, size):
                self.files[inode].resize(size)
            case ("sync", inode) if inode in self.files:
                self.files[inode].sync()
            case ("sync", _):
                for change in self._changes:
                    change_folders(self.folders, change)
                self._changes = []
            case ("syncfailed", inode):
                self.files[inode].sync_failed()
            case ("link", _, _, inode, is_folder):
                self._changes.append(record)
                if not is_folder:
                    self.files[inode] = DiskFile(SparseFile())
            case ("unlink" | "rename", *_):
                self._changes.append(record)

    def materialise(self, target: Path, mode: str, chance: random.Random) -> None:
        """Write what a power cut now may leave into a new folder."""
        count = len(self._changes)
        kept = {"all": count, "none": 0, "last": count}.get(mode, chance.randint(0, count))
        folders = {inode: dict(names) for inode, names in self.folders.items()}
        for change in self._changes[:kept]:
            change_folders(folders, change)
        self._write(folders, 1, target, mode, chance)

    def _write(
        self, folders: dict[int, dict[str, int]], inode: int, target: Path, mode: str, chance: random.Random
    ) -> None:
        target.mkdir()
        for name, child in folders[inode].items():
            if child in folders:
                self._write(folders, child, target / name, mode, chance)
            else:
                self.files[child].materialise(target / name, mode, chance)


def change_folders(folders: dict[int, dict[str, int]], change: Record) -> None:
    """Apply a change of names."""
    match change:
        case ("link", parent, name, inode, is_folder):
            folders[parent][name] = inode
            if is_folder:
                folders[inode] = {}
        case ("unlink", parent, name):
            del folders[parent][name]
        case ("rename", parent, name, target, new):
            folders[target][new] = folders[parent].pop(name)
