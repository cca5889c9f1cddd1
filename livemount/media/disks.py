"""What a backup reads: each disk opened, what names its content, and which ranges of it have to be read at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from livemount.core.errors import ConflictError, UsageError
from livemount.core.machine import Copy, DiskDescription, Frozen
from livemount.media.image_chain import SUFFIXES
from livemount.media.registry import SourceUri, named, open_source
from livemount.media.source import Source, TracksChanges
from livemount.media.sources.file import read_error

BITMAP = re.compile(r"livemount-([0-9a-f]{8,64})")
"""The name of a dirty bitmap that tells which copy it begins with."""
SETTLED_NS = 100_000_000
"""File systems tell times apart that are 10 ms apart, the longest tick of the kernel's clock; coarse ones 2 s."""
COARSE_NS = 2_000_000_000
MAX_CHANGES = 256 << 20
"""Bytes of a file with a list of changes: some ten million ranges."""

Range = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(gt=0)]]


class Changes(Frozen):
    """What changed on a disk since a copy: all else is taken from that copy, unread."""

    since: str
    """The copy, as `NAME@ID` or `ID`."""
    disk: int = Field(default=0, ge=0)
    """The disk's number in the machine."""
    ranges: tuple[Range, ...]
    """(offset, length)."""

    @classmethod
    def load(cls, file: Path, since: str | None) -> Self:
        """Read a JSON file: an object of these fields, or a bare list of ranges where `since` is told besides.

        Raises `UsageError` for anything else, `NotFoundError`, `DeniedError`.
        """
        try:
            if file.stat().st_size > MAX_CHANGES:
                raise UsageError(f"the list of changes {file} has more than {MAX_CHANGES} bytes")
            data = json.loads(file.read_bytes())
        except OSError as error:
            raise read_error(file, error) from error
        except ValueError as error:
            raise UsageError(f"the list of changes {file} is no JSON: {error}") from error
        if isinstance(data, list):
            data = {"ranges": data}
        if isinstance(data, dict) and since is not None and data.setdefault("since", since) != since:
            raise UsageError(f"{file} is relative to {data['since']}, not to {since}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"{file} is no list of changes: {where}: {first['msg']}",
                hint='for example {"since": "web01@1a2b3c4d", "disk": 0, "ranges": [[0, 4096]]}',
            ) from error


@dataclass(frozen=True)
class DiskInput:
    """A disk to back up."""

    place: Path | str
    """A raw image or block device, or a source's URI."""
    password_file: Path | None = None
    name: str = ""
    serial: str = ""
    changes: Changes | None = None


@dataclass(frozen=True)
class OpenDisk:
    """A disk that is open: `livemount._native.DiskOrder`, and what is told of it."""

    file: str
    path: Path | None
    source: Source | None
    size: int
    origin: str
    data: list[tuple[int, int]]
    base: tuple[str, Path] | None = None
    changed: tuple[tuple[int, int], ...] = ()

    @property
    def read(self) -> Callable[[int, int], bytes] | None:
        """Reads the source."""
        return None if self.source is None else self.source.read

    @property
    def bitmap(self) -> str:
        """The dirty bitmap that was asked for."""
        return self.source.bitmap if isinstance(self.source, TracksChanges) else ""

    def tracked(self) -> tuple[tuple[int, int], ...]:
        """What the dirty bitmap names."""
        return tuple(self.source.changed()) if isinstance(self.source, TracksChanges) else ()

    def describe(self, given: DiskInput, *, boot: bool) -> DiskDescription:
        """What the copy tells of it."""
        return DiskDescription(
            file=self.file, size=self.size, boot=boot, name=given.name, serial=given.serial, origin=self.origin
        )

    def since(self, copy: Copy, changed: tuple[tuple[int, int], ...]) -> OpenDisk:
        """Taken from an earlier copy where nothing changed.

        Raises `ConflictError` when that copy has no such disk, `UsageError` for a range outside of the disk.
        """
        before = next((disk for disk in copy.disks if disk.file == self.file), None)
        if before is None or before.size != self.size:
            has = "no such disk" if before is None else f"it with {before.size} bytes, not {self.size}"
            raise ConflictError(
                f"what changed on {self.file} since {copy.name}@{copy.id[:8]} says nothing: that copy has {has}",
                hint="make a copy without a list of changes",
            )
        for offset, length in changed:
            if offset + length > self.size:
                raise UsageError(f"the change of {length} bytes at {offset} is outside of {self.file}")
        return replace(self, base=(copy.id, Path("/", copy.name, self.file)), changed=changed)


def disk_file(number: int) -> str:
    """The name in the copy of a machine's disk."""
    return f"disk{number}.raw"


@contextmanager
def opened(inputs: list[DiskInput]) -> Iterator[list[OpenDisk]]:
    """Open all disks. Raises what opening a source raises, and `UsageError` for what is no disk image."""
    disks: list[OpenDisk] = []
    try:
        for number, given in enumerate(inputs):
            file = disk_file(number)
            if isinstance(given.place, Path):
                disks.append(_open_path(given, given.place, file))
                continue
            source = open_source(named(given.place), given.password_file)
            disks.append(OpenDisk(file, None, source, source.size, source.identity, []))
        yield disks
    finally:
        for disk in disks:
            if disk.source is not None:
                disk.source.close()


def with_data(disk: OpenDisk) -> OpenDisk:
    """The disk with the ranges of its source that are no holes, where they are needed."""
    if disk.source is None or (disk.base is not None and not disk.changed):
        return disk
    extents = disk.source.extents(0, disk.size)
    return replace(disk, data=[(extent.offset, extent.length) for extent in extents if not extent.hole])


def source_uri(place: Path | str) -> str:
    """The URI of a raw image's path, or what is one already. Raises `UsageError` for the path of another image."""
    if isinstance(place, str):
        return place
    _check_raw(place)
    return str(SourceUri("file", place.resolve(), {}))


def _check_raw(path: Path) -> None:
    if path.suffix.lower() in SUFFIXES:
        raise UsageError(f"{path} is no raw image", hint=f"name it as image://{path.absolute()}")


def _open_path(given: DiskInput, path: Path, file: str) -> OpenDisk:
    if given.password_file is not None:
        raise UsageError(f"{path} has no password")
    _check_raw(path)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            if status.st_size == 0 or status.st_size % 512:
                what = f"its {status.st_size} bytes are not a multiple of 512" if status.st_size else "it is empty"
                raise UsageError(
                    f"{path} is no disk image: {what}",
                    hint="a raw image is wanted; `qemu-img convert -O raw` makes one",
                )
            return OpenDisk(file, path, None, status.st_size, _origin(path.resolve(), status), [])
        if not stat.S_ISBLK(status.st_mode):
            raise UsageError(f"{path} is no disk image: it is not a regular file or block device")
        with path.open("rb", buffering=0) as device:
            # What a device holds has no name: nothing is known of its changes.
            return OpenDisk(file, path, None, device.seek(0, os.SEEK_END), "", [])
    except OSError as error:
        raise read_error(path, error) from error


def _origin(path: Path, status: os.stat_result) -> str:
    """What names the content of a file; nothing when it was changed just now, as a further change might not show."""
    times = (status.st_mtime_ns, status.st_ctime_ns)
    margin = COARSE_NS if all(moment % 1_000_000_000 == 0 for moment in times) else SETTLED_NS
    if time.time_ns() - max(times) < margin:
        return ""
    facts = ("raw", str(path), status.st_ino, status.st_size, *times)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
