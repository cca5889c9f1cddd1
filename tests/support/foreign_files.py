"""The disk that is synthesised from files, as a source for the contract test."""

from __future__ import annotations

import os
from pathlib import Path

from livemount.media.files import layout
from livemount.media.repository import Repository
from tests.support.foreign import MIB, ResticSubject


class FilesSubject(ResticSubject):
    """A copy of files, the disk of the other subjects one of them.

    What must be read is what an undamaged disk of the same files gave; that it is right is tested by mounting one.
    """

    def __init__(self, folder: Path) -> None:
        self._free = layout.FREE_LEAST
        layout.FREE_LEAST = MIB
        self._content = b""
        super().__init__(folder)

    def backup(self, disk: Path) -> str:
        assert self.password is not None
        tree = self.folder / "tree"
        tree.mkdir(exist_ok=True)
        (tree / "data").unlink(missing_ok=True)
        os.link(disk, tree / "data")
        made = self.repository.exists()
        repository = (Repository.open if made else Repository.init)(self.repository, self.password)
        self._content = b""
        return repository.make_files(tree, "web01").copy.source

    def serve(self, disk: Path) -> None:
        super().serve(disk)
        source = self.open()
        self._content = source.read(0, source.size)
        assert (self.folder / "tree/data").read_bytes()[: 2 * MIB] in self._content
        source.close()

    @property
    def content(self) -> bytes:
        return self._content

    def missing(self) -> str:
        return self.uri.replace("files0", "files1")

    def as_elsewhere(self) -> None:
        layout.FREE_LEAST = self._free

    def close(self) -> None:
        layout.FREE_LEAST = self._free
