"""`restic:///REPOSITORY?snapshot=ID&file=PATH`: a disk image in a snapshot of a restic repository.

`restic+s3://HOST[:PORT]/BUCKET[/PREFIX]?...` for one in S3, whose keys are in the password file or the environment.
Copies that livemount made, and images that restic or rustic backed up. A chunk is checked by its MAC and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from livemount._native import Disk, Repository
from livemount.core.errors import ConflictError, DeniedError, NotFoundError
from livemount.core.secrets import read_password
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source

SCHEMES = ("restic", "restic+s3")


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


def open(uri: str, password_file: Path | None) -> Source:
    """Open a disk image of a snapshot."""
    parsed, place = parse(uri)
    snapshot, file = parsed.require("snapshot", "file")
    repository = open_repository(place, password_file)
    return ResticImage(repository.disk(whole_id(repository, snapshot, place), Path(file)))


def parse(uri: str) -> tuple[SourceUri, Path | str]:
    """A URI, and the repository in it: its folder, or its URI for one that is elsewhere."""
    scheme = uri.partition(":")[0]
    kind = scheme.partition("+")[2]
    parsed = SourceUri.parse(uri, host=bool(kind))
    return parsed, str(replace(parsed, scheme=f"restic+{kind}", options={})) if kind else parsed.path


def open_repository(place: Path | str, password_file: Path | None) -> Repository:
    """Open it with the password, and the keys, of a file."""
    if password_file is None:
        raise DeniedError(f"{place} has a password", hint="name the file that holds it")
    return Repository.open(place, *read_password(password_file))


def whole_id(repository: Repository, start: str, path: Path | str) -> str:
    """The id that begins with these digits: restic itself shows eight of 64."""
    if not re.fullmatch(r"[0-9a-f]{8,63}", start):
        return start
    found = [snapshot.id for snapshot in repository.snapshots()[0] if snapshot.id.startswith(start)]
    if not found:
        raise NotFoundError(f"{path} has no snapshot {start}")
    if len(found) > 1:
        raise ConflictError(f"{start} names {len(found)} snapshots of {path}", hint="give more digits")
    return found[0]


def pin_snapshot(repository: Path | str, snapshot: str, holder: str, reason: str) -> None:
    """Pin a snapshot; a repository that we never wrote to stays as it is, and elsewhere we forget nothing."""
    if isinstance(repository, str):
        return
    # Imported late: a worker only reads, and with pydantic it would need half as much memory again.
    from livemount.media.pins import Pins, tolerant_of_read_only

    pins = Pins(repository)
    if pins.kept:
        with tolerant_of_read_only(repository):
            pins.pin(holder, snapshot, reason)


def unpin_snapshot(repository: Path | str, holder: str) -> None:
    """Take that pin away."""
    if isinstance(repository, str):
        return
    from livemount.media.pins import Pins, tolerant_of_read_only

    with tolerant_of_read_only(repository):
        Pins(repository).unpin(holder)


def pin(uri: str, holder: str, reason: str) -> None:
    """Keep the snapshot from being forgotten by us."""
    parsed, place = parse(uri)
    snapshot, _ = parsed.require("snapshot", "file")
    pin_snapshot(place, snapshot, holder, reason)


def unpin(uri: str, holder: str) -> None:
    """Let the snapshot be forgotten again."""
    unpin_snapshot(parse(uri)[1], holder)
