"""A raw disk image as a source."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from livemount.core.errors import NotFoundError, UnavailableError
from livemount.media.source import Extent


class RawSource:
    """A file whose bytes are the disk. Its identity changes whenever the file does."""

    chunk_size = 65536

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"the disk image {path} does not exist") from error
        status = os.fstat(self._file)
        self.size = status.st_size
        mark = f"{path.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
        self.identity = hashlib.sha256(mark.encode()).hexdigest()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Holes as the file system knows them."""
        position, end = offset, offset + length
        while position < end:
            try:
                data = min(end, os.lseek(self._file, position, os.SEEK_DATA))
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = end
            if data > position:
                yield Extent(position, data - position, True)
            if data == end:
                return
            position = min(end, os.lseek(self._file, data, os.SEEK_HOLE))
            yield Extent(data, position - data, False)

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        try:
            data = os.pread(self._file, length, offset)
        except OSError as error:
            raise UnavailableError(f"the disk image cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise UnavailableError("the disk image was cut short")
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
