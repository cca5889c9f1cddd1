"""What the sectors of a disk may hold while things fail, kept by the one thread that writes them.

A write that was acknowledged is what is read; whether it is there after a crash is certain from the next successful
fsync on. A write or fsync that failed leaves old or new, sector by sector, until the range is written and synced again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

SECTOR = 512
SOURCE, ZERO = 0, -1
"""Values that no write has: what the source holds, and zeros."""


def pattern(value: int, sector: int) -> bytes:
    """A sector that holds a value of a write."""
    return bytes(SECTOR) if value == ZERO else struct.pack("<QQ", value, sector) * (SECTOR // 16)


class Model:
    """The sectors of a range, by number. `source` is the whole disk as it was first."""

    def __init__(self, source: bytes) -> None:
        self._source = source
        self._now: dict[int, set[int]] = {}
        self._before: dict[int, set[int]] = {}
        """Of sectors written since the last successful fsync: what else a crash may leave."""

    def _values(self, sector: int) -> set[int]:
        return self._now.get(sector, {SOURCE})

    def wrote(self, sectors: Iterable[int], value: int) -> None:
        """A write or zeroing was acknowledged."""
        for sector in sectors:
            self._before.setdefault(sector, set()).update(self._values(sector), [value])
            self._now[sector] = {value}

    def wrote_perhaps(self, sectors: Iterable[int], value: int) -> None:
        """A write failed."""
        for sector in sectors:
            self._now[sector] = self._values(sector) | {value}
            self._before.setdefault(sector, set()).update(self._now[sector])

    def synced(self) -> None:
        """What was acknowledged is safe now."""
        self._before.clear()

    def lost(self) -> None:
        """An fsync failed, or everything was killed: nothing since the last fsync is certain."""
        for sector, values in self._before.items():
            self._now[sector] = self._values(sector) | values

    def needs_source(self, sector: int, *, doubtful: bool) -> bool:
        """Whether a sector may still be the source's. `doubtful`: what was not synced may be lost already."""
        return SOURCE in self._possible(sector, doubtful=doubtful)

    def _possible(self, sector: int, *, doubtful: bool) -> set[int]:
        return self._values(sector) | (self._before.get(sector, set()) if doubtful else set())

    def was_ever_touched(self, block: int) -> bool:
        """Whether any write or zeroing of any part of a block was tried."""
        return any(sector in self._now for sector in range(block * 8, block * 8 + 8))

    def mismatch(self, first: int, data: bytes, *, doubtful: bool) -> str | None:
        """What is wrong with sectors that were read. `doubtful`: what was not synced may be lost already."""
        for at in range(0, len(data), SECTOR):
            sector = first + at // SECTOR
            values = self._possible(sector, doubtful=doubtful)
            found = data[at : at + SECTOR]
            if not any(found == self._bytes(value, sector) for value in values):
                return f"sector {sector} holds {found[:16].hex()} instead of one of {sorted(values)}"
        return None

    def _bytes(self, value: int, sector: int) -> bytes:
        return self._source[sector * SECTOR : (sector + 1) * SECTOR] if value == SOURCE else pattern(value, sector)
