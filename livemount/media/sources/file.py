"""`file:///PATH`: a raw disk image on this machine.

The image must not change while it is a source: each read looks, and fails when it has.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, RangeSource, Source

SCHEMES = ("file",)
CHUNK = 64 << 10


class RawImage(RangeSource):
    """A `Source` over a raw image."""

    def __init__(self, path: Path) -> None:
        try:
            self._path = path.resolve(strict=True)
            if not self._path.is_file():
                raise UsageError(f"{path} is no disk image: it is not a regular file")
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise read_error(path, error) from error
        self._name = str(self._path)
        self._facts = self._look()
        size = self._facts[1]
        if size == 0 or size % 512:
            self.close()
            raise UnsupportedError(
                f"{path} is no raw disk image: it has {size} bytes, not a multiple of 512",
                hint="`qemu-img convert -O raw` makes a raw image",
            )

    def _look(self) -> tuple[int, int, int]:
        status = os.fstat(self._descriptor)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def _check(self, offset: int, length: int) -> None:
        super()._check(offset, length)
        if self._look() != self._facts:
            raise CorruptError(
                f"{self._path} was changed while it was in use", hint="back it up and mount the copy instead"
            )

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._facts[1]

    @property
    def identity(self) -> str:
        """Made of path, inode, size and time of change: the content itself is not read."""
        return hashlib.sha256(repr((str(self._path), *self._facts)).encode()).hexdigest()

    @property
    def chunk_size(self) -> int:
        """64 KiB: a good size to read a file in; any other would do."""
        return CHUNK

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the file system knows of holes."""
        self._check(offset, length)
        end = offset + length
        while offset < end:
            data = self._seek(offset, os.SEEK_DATA, end)
            if data > offset:
                yield Extent(offset, data - offset, hole=True)
            if data < end:
                hole = self._seek(data, os.SEEK_HOLE, end)
                yield Extent(data, hole - data, hole=False)
                data = hole
            offset = data

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._descriptor, offset, whence), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data, or no hole, from here on
                return end
            raise read_error(self._path, error) from error

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        return read_exactly(self._descriptor, self._path, offset, length)

    def close(self) -> None:
        """Let go of the file."""
        if self._open:
            self._open = False
            os.close(self._descriptor)


def read_exactly(descriptor: int, path: Path, offset: int, length: int) -> bytes:
    """Exactly `length` bytes of what was opened at `path`. Raises `CorruptError` where it ends before that."""
    parts = []
    while length:
        try:
            part = os.pread(descriptor, length, offset)
        except OSError as error:
            raise read_error(path, error) from error
        if not part:
            raise CorruptError(f"{path} became shorter while it was read")
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_error(path: Path, error: OSError) -> LivemountError:
    """The error to raise for an image that cannot be read."""
    message = f"cannot read {path}: {error.strerror}"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFoundError(message)
    if isinstance(error, PermissionError):
        return DeniedError(message)
    return UnavailableError(message)


def open(uri: str, password_file: Path | None) -> Source:
    """Open a raw image; it has no password."""
    parsed = SourceUri.parse(uri)
    parsed.require()
    if password_file is not None:
        raise UsageError(f"{uri} has no password")
    return RawImage(parsed.path)
