"""The disk that is synthesised from files, as a source for the contract test."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.files import layout
from livemount.media.registry import SourceUri
from livemount.media.repository import FILES_FOLDER, Repository
from tests.support.foreign import MIB, PASSWORD, MadeOnce, ResticSubject


@cache
def _copy_of_files(disk: bytes) -> tuple[MadeOnce, bytes]:
    """A repository with a tree that has the disk in it, and what an undamaged disk of that tree holds."""
    keeper = TemporaryDirectory(prefix="files-")
    folder = Path(keeper.name)
    (folder / "tree").mkdir()
    (folder / "tree/data").write_bytes(disk)
    os.utime(folder / "tree/data", (0, 0))
    write_secret(folder / "password", PASSWORD)
    repository = Repository.init(folder / "repository", folder / "password")
    copy = repository.make_files(folder / "tree", "web01").copy
    source = open_source(copy.source, folder / "password")
    content = source.read(0, source.size)
    source.close()
    assert disk[: 2 * MIB] in content
    return MadeOnce(folder / "repository", copy.id, keeper), content


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
        made, self._content = _copy_of_files(disk.read_bytes())
        if self.repository.exists():
            shutil.rmtree(self.repository)
        shutil.copytree(made.folder, self.repository)
        options = {"snapshot": made.name, "path": f"/web01/{FILES_FOLDER}"}
        return str(SourceUri("files", self.repository, options))

    @property
    def content(self) -> bytes:
        return self._content

    def missing(self) -> str:
        return self.uri.replace("files0", "files1")

    def as_elsewhere(self) -> None:
        layout.FREE_LEAST = self._free

    def close(self) -> None:
        layout.FREE_LEAST = self._free
