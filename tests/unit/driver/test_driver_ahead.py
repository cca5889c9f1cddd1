"""Recall in the background: read-ahead, prefetch, and how demand goes with them. Recalls are counted, not timed."""

from __future__ import annotations

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from livemount._native import PseudoDisk
from livemount.driver.layout import COUNTERS_SIZE, Counter, DiskFiles, Facts
from livemount.driver.recall_store import RecallStore

MIB = 1 << 20
CHUNK = 65536
SIZE = 64 * MIB
CHUNKS = SIZE // CHUNK


def chunk_bytes(number: int) -> bytes:
    """The source's bytes: the number of the chunk, over and over."""
    return (number + 1).to_bytes(8, "little") * (CHUNK // 8)


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)


class Bench:
    """A source whose recalls are recorded, and stopped by a gate for each kind."""

    def __init__(self, folder: Path) -> None:
        self.files = DiskFiles(folder / "mount")
        self.files.private.mkdir(parents=True)
        self.files.counters.write_bytes(bytes(COUNTERS_SIZE))
        self.store = RecallStore(folder / "recall", Facts("cd" * 32, SIZE, CHUNK))
        self.store.join("disk", [(10 * MIB, MIB)])
        self.lock = threading.Lock()
        self.recalls: list[tuple[int, int, bool]] = []
        self.running = 0
        self.most_running = 0
        self.failures: dict[int, int] = {}
        self.latency = 0.0
        self.gates = {False: threading.Event(), True: threading.Event()}
        for gate in self.gates.values():
            gate.set()
        self.disks: list[PseudoDisk] = []

    def open(self, threads: int) -> PseudoDisk:
        """The disk, with at most so many recall threads."""
        disk = PseudoDisk(self.files.private, self.store.folder, SIZE, CHUNK, self.recall, threads)
        self.disks.append(disk)
        return disk

    def recall(self, offset: int, length: int, background: bool) -> bytes:
        """The source."""
        chunks = range(offset // CHUNK, (offset + length) // CHUNK)
        with self.lock:
            self.recalls.append((chunks.start, len(chunks), background))
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            self.gates[background].wait(30)
            time.sleep(self.latency)
            for chunk in chunks:
                if chunk in self.failures:
                    raise OSError(self.failures[chunk], "the source fails here")
            return b"".join(chunk_bytes(chunk) for chunk in chunks)
        finally:
            with self.lock:
                self.running -= 1

    def idle(self) -> bool:
        """Whether no recall is under way."""
        with self.lock:
            return self.running == 0

    def settle(self) -> None:
        """Wait until the background has nothing to do any more."""
        while True:
            before = len(self.recalls)
            wait_for(self.idle)
            time.sleep(0.05)
            if self.idle() and len(self.recalls) == before:
                return

    def recalled(self) -> list[int]:
        """All chunks that were recalled, one entry each time."""
        return [chunk for first, count, _ in self.recalls for chunk in range(first, first + count)]

    def counter(self, counter: Counter) -> int:
        """A counter."""
        return self.files.read_counters()[counter]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A bench for one test."""
    bench = Bench(tmp_path)
    yield bench
    for gate in bench.gates.values():
        gate.set()
    for disk in bench.disks:
        disk.close()


def read_on(disk: PseudoDisk, start: int, end: int, step: int = CHUNK) -> None:
    """Read a range in steps, checking what comes."""
    for offset in range(start, end, step):
        data = disk.read(offset, min(step, end - offset))
        for number, at in enumerate(range(0, len(data), CHUNK), offset // CHUNK):
            zero = 10 * MIB <= number * CHUNK < 11 * MIB
            assert data[at : at + CHUNK] == (bytes(CHUNK) if zero else chunk_bytes(number))


def test_sequential_reads_are_recalled_ahead_in_parallel(bench: Bench) -> None:
    disk = bench.open(48)
    read_on(disk, 0, 16 * MIB)
    bench.settle()
    bench.gates[True].clear()
    reader = threading.Thread(target=read_on, args=(disk, 16 * MIB, SIZE))
    reader.start()
    wait_for(lambda: bench.running >= 8)
    bench.gates[True].set()
    reader.join(30)
    assert not reader.is_alive()
    recalled = bench.recalled()
    assert sorted(recalled) == [chunk for chunk in range(CHUNKS) if chunk * CHUNK // MIB != 10]
    # Nearly all came before they were asked for, and in reads of many chunks.
    assert bench.counter(Counter.PREFETCHED_BYTES) > bench.counter(Counter.RECALLED_BYTES) * 0.9
    assert len(bench.recalls) < CHUNKS / 4


@pytest.mark.parametrize("latency", [0, 0.07])
def test_a_slow_source_is_read_further_ahead(bench: Bench, latency: float) -> None:
    bench.latency = latency
    read_on(bench.open(48), 0, MIB)
    bench.settle()
    end = max(bench.recalled()) + 1
    # As much again as was read; of a slow source, up to four times as much.
    assert 3 * MIB < end * CHUNK <= 5 * MIB if latency else MIB < end * CHUNK <= 2 * MIB


def test_random_reads_are_not_read_ahead(bench: Bench) -> None:
    disk = bench.open(8)
    chunks = random.Random(1).sample(range(200, CHUNKS, 3), 60)
    for chunk in chunks:
        read_on(disk, chunk * CHUNK, (chunk + 1) * CHUNK)
    # One long request is no sequence yet.
    read_on(disk, 0, MIB, MIB)
    bench.settle()
    assert bench.recalled() == [*chunks, *range(MIB // CHUNK)]
    assert bench.counter(Counter.PREFETCHED_BYTES) == 0


def test_read_ahead_is_not_more_than_was_read(bench: Bench) -> None:
    disk = bench.open(8)
    for end in (MIB, 4 * MIB):
        read_on(disk, 0, end)
        bench.settle()
        assert end // CHUNK < len(bench.recalled()) <= 2 * end // CHUNK


def test_read_ahead_of_an_abandoned_stream_is_cancelled(bench: Bench) -> None:
    # Two threads: one for demand, one for the background, which is held at its first recall.
    disk = bench.open(2)
    read_on(disk, 0, 8 * MIB)
    bench.settle()
    before = set(bench.recalled())
    bench.gates[True].clear()
    end = 8 * MIB
    while bench.idle():
        read_on(disk, end, end + MIB)
        end += MIB
    (held,) = [(first, count) for first, count, background in bench.recalls if background and first not in before]
    others = range(500, 950, 50)
    for chunk in others:
        read_on(disk, chunk * CHUNK, (chunk + 1) * CHUNK)
    bench.gates[True].set()
    bench.settle()
    assert set(bench.recalled()) == {*before, *range(held[0], sum(held)), *others}


def test_prefetch_follows_its_order_and_gives_way_to_demand(bench: Bench) -> None:
    disk = bench.open(2)
    bench.gates[True].clear()
    disk.prefetch([500, 501, 502, 300, 7, 1 << 40])
    wait_for(lambda: bench.recalls)
    read_on(disk, 300 * CHUNK, 301 * CHUNK)
    bench.gates[True].set()
    wait_for(lambda: len(bench.recalls) == 3)
    bench.settle()
    assert bench.recalls == [(500, 3, True), (300, 1, False), (7, 1, True)]
    read_on(disk, 500 * CHUNK, 503 * CHUNK)
    assert len(bench.recalls) == 3


def test_demand_joins_a_recall_of_the_background(bench: Bench) -> None:
    disk = bench.open(4)
    bench.gates[True].clear()
    disk.prefetch([40, 41])
    wait_for(lambda: bench.recalls)
    reader = threading.Thread(target=read_on, args=(disk, 41 * CHUNK, 42 * CHUNK))
    reader.start()
    reader.join(0.1)
    bench.gates[True].set()
    reader.join(20)
    assert not reader.is_alive()
    assert bench.recalls == [(40, 2, True)]


def test_demand_does_not_fail_with_the_background(bench: Bench) -> None:
    disk = bench.open(4)
    bench.gates[True].clear()
    bench.failures = {41: errno.ETIMEDOUT}
    disk.prefetch([40, 41, 200, 201])
    wait_for(lambda: bench.recalls)
    reader = threading.Thread(target=read_on, args=(disk, 41 * CHUNK, 42 * CHUNK))
    reader.start()
    # The source comes back between the background's try and that of demand.
    bench.gates[False].clear()
    reader.join(0.1)
    bench.gates[True].set()
    wait_for(lambda: (41, 1, False) in bench.recalls)
    bench.failures = {}
    bench.gates[False].set()
    reader.join(20)
    assert not reader.is_alive()
    bench.settle()
    # With the source back, the background goes on.
    assert (200, 2, True) in bench.recalls


def test_source_that_is_away_stops_the_background(bench: Bench) -> None:
    disk = bench.open(2)
    bench.failures = dict.fromkeys(range(CHUNKS), errno.ETIMEDOUT)
    disk.prefetch(list(range(0, 60, 3)))
    wait_for(lambda: bench.recalls)
    bench.settle()
    assert len(bench.recalls) == 1


def test_damaged_chunk_does_not_take_its_neighbours_along(bench: Bench) -> None:
    disk = bench.open(4)
    bench.failures = {35: errno.EIO}
    with pytest.raises(OSError, match="Input/output error"):
        disk.read(32 * CHUNK, MIB)
    read_on(disk, 32 * CHUNK, 35 * CHUNK)
    read_on(disk, 36 * CHUNK, 48 * CHUNK)
    with pytest.raises(OSError, match="Input/output error"):
        disk.read(35 * CHUNK, 1)
    assert bench.recalled().count(36) == 2  # once with all the others, once alone


def test_first_reads_are_in_order_and_without_zeros(bench: Bench) -> None:
    disk = bench.open(4)
    for chunk in (90, 3, 90, 160, 165, 4):
        disk.read(chunk * CHUNK + 5, 10)
    # A write of a part of a block reads it, one of whole blocks reads nothing.
    disk.write(50 * CHUNK + 1, b"x")
    disk.write(60 * CHUNK, bytes(4096))
    assert disk.first_reads() == [90, 3, 4, 50]
