"""How the cold bench counts what a reader gets."""

from __future__ import annotations

import threading

from bench.cold import RANDOM_BLOCK, SIZE, Reading
from bench.hits import KIB, MIB


def test_random_reads_are_each_of_another_chunk_and_the_same_for_everyone() -> None:
    reading = Reading("r", RANDOM_BLOCK, at_random=True, readers=8)
    offsets = reading.offsets()
    assert offsets == reading.offsets()
    chunks = [offset // (512 * KIB) for offset in offsets]
    assert len(set(chunks)) == len(chunks)
    assert max(offsets) + RANDOM_BLOCK <= SIZE


def test_everything_read_in_time_counts() -> None:
    seen: list[int] = []

    def read(offset: int) -> bytes:
        seen.append(offset)
        return bytes(MIB)

    assert Reading("s", MIB).rate(read, 60) > 0
    assert seen == list(range(0, SIZE, MIB))


def test_a_reader_that_hangs_is_given_up_and_counts_as_one_block() -> None:
    release = threading.Event()

    def read(_: int) -> bytes:
        release.wait()
        return b""

    try:
        assert 0 < Reading("s", MIB, readers=4).rate(read, 0.05) <= 10
    finally:
        release.set()
