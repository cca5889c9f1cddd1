"""`restic:///REPOSITORY?snapshot=ID&file=PATH`: a disk image in a snapshot of a restic repository.

`restic+s3://`, `restic+azure://`, `restic+rest://`, `restic+sftp://` for one elsewhere, whose keys are in the password
file or the environment. Copies that livemount made, and images that restic or rustic backed up. A chunk is checked by
its MAC and its SHA-256.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from livemount._native import Disk, FilesDisk, Repository
from livemount.core.errors import ConflictError, DeniedError, NotFoundError
from livemount.core.secrets import read_password
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source

if TYPE_CHECKING:
    from livemount.media.pins import Pins

ELSEWHERE = ("s3", "azure", "rest", "sftp")
SCHEMES = ("restic", *(f"restic+{kind}" for kind in ELSEWHERE))


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


def pins_of(place: Path | str, password_file: Path | None) -> Pins:
    """The pins of a repository; of one elsewhere, or used as such, they are sealed, so that it must be opened."""
    # Imported late: a worker only reads, and with pydantic it would need half as much memory again.
    from livemount.media.notes import pins_of
    from livemount.media.pins import FolderPins

    if isinstance(place, Path) and not any(
        folder.is_dir() for folder in (place / "livemount" / "locks", Path(f"{place}.livemount"))
    ):
        return FolderPins(place)
    return pins_of(place, open_repository(place, password_file))


def pin_snapshot(place: Path | str, snapshot: str, holder: str, reason: str, password_file: Path | None) -> None:
    """Pin a snapshot; a repository that we never wrote to stays as it is."""
    from livemount.media.pins import tolerant_of_read_only

    pins = pins_of(place, password_file)
    if pins.kept:
        with tolerant_of_read_only(place):
            pins.pin(holder, snapshot, reason)


def unpin_snapshot(place: Path | str, holder: str, password_file: Path | None) -> None:
    """Take that pin away."""
    from livemount.media.pins import tolerant_of_read_only

    pins = pins_of(place, password_file)
    with tolerant_of_read_only(place):
        pins.unpin(holder)


def pin(uri: str, holder: str, reason: str, password_file: Path | None) -> None:
    """Keep the snapshot from being forgotten by us."""
    parsed, place = parse(uri)
    snapshot, _ = parsed.require("snapshot", "file")
    pin_snapshot(place, snapshot, holder, reason, password_file)


def unpin(uri: str, holder: str, password_file: Path | None) -> None:
    """Let the snapshot be forgotten again."""
    unpin_snapshot(parse(uri)[1], holder, password_file)
