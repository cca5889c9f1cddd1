"""The images that backups are measured with, and how a part of them is changed and put back."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.hits import KIB, MIB
from bench.place import copy_sparse
from demo.guest import build_guest
from livemount.core.settings import Settings

Range = tuple[int, int]
"""(offset, length)."""

MIXED_SIZE = 2048 * MIB
IN_USE = 0.4
"""Part of the mixed image that is not holes: a third of it random bytes, the rest text."""
RUN = 4 * MIB
CHANGED = 0.02
"""Part of the data that is written anew."""
RUNS = (64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, MIB)
"""Lengths of what is written anew."""
BLOCK = 4 * KIB


def _lines(chance: random.Random) -> list[bytes]:
    """Lines of made-up words, of which some are far more frequent than others, as in text and in logs."""
    letters = b"etaoinshrdlucmfwypvbgkjqxz"
    words = [bytes(chance.choices(letters, k=chance.randint(2, 11))) for _ in range(20_000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))
    return [b" ".join(chance.choices(words, cum_weights=weights, k=12)) for _ in range(1 << 16)]


def mixed(path: Path) -> Path:
    """Make an image of runs of data and holes: text of which no chunk is twice there, and bytes by chance."""
    chance = random.Random(1)  # noqa: S311 (nothing secret)
    lines = _lines(chance)
    noise = RUN // 3
    with path.open("wb") as file:
        file.truncate(MIXED_SIZE)
        for offset in range(0, MIXED_SIZE, RUN):
            if chance.random() >= IN_USE:
                continue
            text = b"\n".join(chance.choices(lines, k=RUN // 40))
            file.seek(offset)
            file.write((chance.randbytes(noise) + text)[:RUN])
        os.fsync(file.fileno())
    return path


def guest(path: Path) -> Path:
    """Copy the demonstration's guest: a Debian on ext4, 0.35 GiB of a disk of 2 GiB."""
    cache = Settings().cache
    copy_sparse(build_guest(cache / "guests", hostname=path.stem, cache=cache), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def data(path: Path) -> list[Range]:
    """The ranges of a file that are not holes."""
    found = []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        end = 0
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found.append((begin, end - begin))
    return found


def blocks(ranges: list[Range], length: int) -> list[int]:
    """The offsets of the blocks of a length that lie wholly in ranges."""
    return [
        at for begin, count in ranges for at in range(-(-begin // length) * length, begin + count - length + 1, length)
    ]


@dataclass(frozen=True)
class Change:
    """What was written to an image, and what was there."""

    ranges: tuple[Range, ...]
    before: tuple[bytes, ...]

    @classmethod
    def write(cls, path: Path, seed: int) -> Change:
        """Write a part of the data anew, in runs of several lengths at any place, with bytes by chance."""
        chance = random.Random(seed)  # noqa: S311
        there = data(path)
        left = int(sum(length for _, length in there) * CHANGED)
        taken: list[Range] = []
        before = []
        with path.open("r+b") as file:
            for offset, length in _places(chance, there):
                if any(begin < offset + length and offset < begin + count for begin, count in taken):
                    continue
                taken.append((offset, length))
                before.append(os.pread(file.fileno(), length, offset))
                os.pwrite(file.fileno(), chance.randbytes(length), offset)
                left -= length
                if left <= 0:
                    break
        return cls(tuple(sorted(taken)), tuple(kept for _, kept in sorted(zip(taken, before, strict=True))))

    def undo(self, path: Path) -> None:
        """Put back what was there."""
        with path.open("r+b") as file:
            for (offset, _), content in zip(self.ranges, self.before, strict=True):
                os.pwrite(file.fileno(), content, offset)


def _places(chance: random.Random, there: list[Range]) -> Iterator[Range]:
    """Runs within the data, without end."""
    weights = list(itertools.accumulate(length for _, length in there))
    while True:
        begin, count = chance.choices(there, cum_weights=weights)[0]
        length = min(chance.choice(RUNS), count)
        yield begin + chance.randrange((count - length) // BLOCK + 1) * BLOCK, length
