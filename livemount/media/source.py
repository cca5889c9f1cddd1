"""What can be mounted: a `Source` is a disk of known size and holes, readable at any offset from many threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

from livemount.core.errors import UnavailableError, UsageError


class Extent(NamedTuple):
    """A range of a source. Bytes of a hole are zero and need no recall."""

    offset: int
    length: int
    hole: bool


class Source(Protocol):
    """A readable disk. All numbers are bytes. `read` may be called from many threads at once."""

    @property
    def size(self) -> int:
        """Size of the disk, a multiple of 512."""

    @property
    def identity(self) -> str:
        """Hex digits that name the content: two sources of equal identity have equal bytes for ever.

        The recall store of a source is keyed by it.
        """

    @property
    def chunk_size(self) -> int:
        """The size and alignment of reads that the source answers without reading more than was asked."""

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of a range, in order, without gaps, clipped to the range."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`.

        Raises `CorruptError` for data that fails its check, `UnavailableError` for a source that does not answer
        (a retry may help), `DeniedError` for a wrong key.
        """

    def close(self) -> None:
        """Let go of files and connections. Reads after it raise `UnavailableError`."""


@runtime_checkable
class TracksChanges(Protocol):
    """What a source offers as well that can tell what was written since some time: `bitmap` names the record of it."""

    @property
    def bitmap(self) -> str:
        """The bitmap's name, empty when none was asked for."""

    def changed(self) -> list[tuple[int, int]]:
        """What was written, as (offset, length), in order."""


class RangeSource(ABC):
    """What sources have in common that read ranges of one thing with a name."""

    _name: str
    _open = True

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the disk."""

    def _check(self, offset: int, length: int) -> None:
        """Raises `UnavailableError` for a source that is closed, `UsageError` for a range that is not within it."""
        if not self._open:
            raise UnavailableError(f"the source {self._name} is closed")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise UsageError(f"{length} bytes at {offset} are not within the {self.size} bytes of {self._name}")

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """All of it is data, where nothing tells holes."""
        self._check(offset, length)
        return iter([Extent(offset, length, hole=False)] if length else [])
