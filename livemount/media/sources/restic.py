"""`restic:///REPOSITORY?snapshot=ID&file=PATH`: a disk image in a snapshot of a restic repository.

Copies that livemount made, and images that restic or rustic backed up. A chunk is checked by its MAC and its SHA-256.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from livemount._native import Disk, Repository
from livemount.core.errors import DeniedError
from livemount.core.secrets import read_secret
from livemount.media.pins import Pins, tolerant_of_read_only
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source


class ResticImage:
    """A `Source` over a file of a snapshot."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._disk.size

    @property
    def identity(self) -> str:
        """SHA-256 of the chunks' lengths and ids: equal for copies of equal content."""
        return self._disk.identity

    @property
    def chunk_size(self) -> int:
        """Length of the chunks, or their average length where restic cut them by content."""
        return self._disk.chunk_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Chunks of zeros are holes. No data is read."""
        return (Extent(*extent) for extent in self._disk.extents(offset, length))

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, checked."""
        return self._disk.read(offset, length)

    def close(self) -> None:
        """Refuse further reads."""
        self._disk.close()


def open(uri: SourceUri, password_file: Path | None) -> Source:
    """Open a disk image of a snapshot."""
    snapshot, file = uri.require("snapshot", "file")
    if password_file is None:
        raise DeniedError(f"{uri.path} has a password", hint="name the file that holds it")
    return ResticImage(Repository.open(uri.path, read_secret(password_file)).disk(snapshot, Path(file)))


def pin(uri: SourceUri, holder: str, reason: str) -> None:
    """Keep the snapshot from being forgotten."""
    snapshot, _ = uri.require("snapshot", "file")
    with tolerant_of_read_only(uri.path):
        Pins(uri.path).pin(holder, snapshot, reason)


def unpin(uri: SourceUri, holder: str) -> None:
    """Let the snapshot be forgotten again."""
    with tolerant_of_read_only(uri.path):
        Pins(uri.path).unpin(holder)
