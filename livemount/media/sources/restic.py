"""`restic:///REPOSITORY?snapshot=ID&file=PATH`: a disk image in a snapshot of a restic repository.

Copies that livemount made, and images that restic or rustic backed up. A chunk is checked by its MAC and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from livemount._native import Disk, FilesDisk, Repository
from livemount.core.errors import ConflictError, DeniedError, NotFoundError
from livemount.core.secrets import read_secret
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source

SCHEMES = ("restic",)


class ResticImage:
    """A `Source` over a file of a snapshot, or over a disk synthesised from a folder of it."""

    def __init__(self, disk: Disk | FilesDisk) -> None:
        self._disk = disk

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._disk.size

    @property
    def identity(self) -> str:
        """SHA-256 of the chunks' places and ids, and of what was synthesised: equal for copies of equal content."""
        return self._disk.identity

    @property
    def chunk_size(self) -> int:
        """Length of the chunks, or their average length where restic cut them by content; of files a few small ones."""
        return self._disk.chunk_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Chunks of zeros are holes, and what no file has. No data is read."""
        return (Extent(*extent) for extent in self._disk.extents(offset, length))

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, checked."""
        return self._disk.read(offset, length)

    def close(self) -> None:
        """Refuse further reads."""
        self._disk.close()


def open(uri: str, password_file: Path | None) -> Source:
    """Open a disk image of a snapshot."""
    parsed = SourceUri.parse(uri)
    snapshot, file = parsed.require("snapshot", "file")
    repository = open_repository(parsed.path, password_file)
    return ResticImage(repository.disk(whole_id(repository, snapshot, parsed.path), Path(file)))


def open_repository(path: Path, password_file: Path | None) -> Repository:
    """Open the repository, which always has a password."""
    if password_file is None:
        raise DeniedError(f"{path} has a password", hint="name the file that holds it")
    return Repository.open(path, read_secret(password_file))


def whole_id(repository: Repository, start: str, path: Path) -> str:
    """The id that begins with these digits: restic itself shows eight of 64."""
    if not re.fullmatch(r"[0-9a-f]{8,63}", start):
        return start
    found = [snapshot.id for snapshot in repository.snapshots()[0] if snapshot.id.startswith(start)]
    if not found:
        raise NotFoundError(f"{path} has no snapshot {start}")
    if len(found) > 1:
        raise ConflictError(f"{start} names {len(found)} snapshots of {path}", hint="give more digits")
    return found[0]


def pin_snapshot(repository: Path, snapshot: str, holder: str, reason: str) -> None:
    """Pin a snapshot; a repository that we never wrote to stays as it is."""
    # Imported late: a worker only reads, and with pydantic it would need half as much memory again.
    from livemount.media.pins import Pins, tolerant_of_read_only

    pins = Pins(repository)
    if pins.kept:
        with tolerant_of_read_only(repository):
            pins.pin(holder, snapshot, reason)


def unpin_snapshot(repository: Path, holder: str) -> None:
    """Take that pin away."""
    from livemount.media.pins import Pins, tolerant_of_read_only

    with tolerant_of_read_only(repository):
        Pins(repository).unpin(holder)


def pin(uri: str, holder: str, reason: str) -> None:
    """Keep the snapshot from being forgotten by us."""
    parsed = SourceUri.parse(uri)
    snapshot, _ = parsed.require("snapshot", "file")
    pin_snapshot(parsed.path, snapshot, holder, reason)


def unpin(uri: str, holder: str) -> None:
    """Let the snapshot be forgotten again."""
    unpin_snapshot(SourceUri.parse(uri).path, holder)
