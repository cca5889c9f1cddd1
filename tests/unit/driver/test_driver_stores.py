"""The stores against a model: a bytearray, and for a crash the files as they were at the last flush."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from livemount._native import PseudoDisk
from livemount.core.errors import CorruptError
from livemount.driver.layout import Counter, DiskFiles, Facts
from livemount.driver.recall_store import HEADER, RecallStore

BLOCK = 4096
CHUNK = 65536
# Not a multiple of a block, three regions of locks, two sectors of the map (one covers 2016 blocks).
SIZE = 9 * (1 << 20) + 3 * 512


def content(size: int = SIZE) -> bytes:
    """A source: every other chunk zeros."""
    parts = [
        random.Random(at).randbytes(CHUNK) if at % (2 * CHUNK) else bytes(CHUNK) for at in range(0, size + CHUNK, CHUNK)
    ]
    return b"".join(parts)[:size]


SOURCE = content()


class Bench:
    """A disk in a folder of its own, and what its recalls do."""

    def __init__(self, folder: Path) -> None:
        self.files = DiskFiles(folder / "mount")
        self.files.private.mkdir(parents=True, exist_ok=True)
        self.facts = Facts("ab" * 32, SIZE, CHUNK)
        self.recall_store = RecallStore(folder / "recall", self.facts)
        self.recalls: list[int] = []
        self.fail: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()

    def recall(self, offset: int, length: int, _background: bool) -> bytes:
        """The source."""
        self.recalls.append(offset)
        self.gate.wait(30)
        if offset // CHUNK in self.fail:
            raise OSError("the source fails here")
        return SOURCE[offset : offset + length]

    def open(self) -> PseudoDisk:
        """Open the disk over what the folder holds."""
        self.recall_store.join("disk", [(0, CHUNK + 100)])
        self.files.prepare_counters()
        return PseudoDisk(self.files.private, self.recall_store.folder, SIZE, CHUNK, self.recall, 4)


@contextmanager
def opened(bench: Bench) -> Iterator[PseudoDisk]:
    """An open disk, closed in the end."""
    disk = bench.open()
    try:
        yield disk
    finally:
        disk.close()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A bench for one test."""
    return Bench(tmp_path)


def abandon(bench: Bench, disk: PseudoDisk) -> None:
    """Leave the private store as a killed process does."""
    copy = bench.files.folder / "copy"
    shutil.copytree(bench.files.private, copy)
    disk.close()
    shutil.rmtree(bench.files.private)
    copy.rename(bench.files.private)


def restart_machine(live: Path, at: int) -> None:
    """Make a mapped file (boot id at byte `at`) look like one from before a restart of the machine."""
    with live.open("r+b") as file:
        file.seek(at)
        file.write(b"0" * 36)


OFFSETS = st.integers(0, SIZE - 1)
# Around the edges of blocks and chunks, where the mistakes are.
EDGES = st.builds(
    lambda base, delta: min(max(base * BLOCK + delta, 0), SIZE - 1), st.integers(0, SIZE // BLOCK), st.integers(-9, 9)
)
LENGTHS = st.one_of(st.integers(0, 3 * BLOCK), st.just(BLOCK), st.integers(0, 3 << 20))


class DiskMachine(RuleBasedStateMachine):
    """Any sequence of operations leaves the disk equal to the model."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="livemount-stores-"))
        self.bench = Bench(self.folder)
        self.disk = self.bench.open()
        self.model = bytearray(SOURCE)
        self.flushed = bytes(SOURCE)
        self.touched: set[int] = set()

    def teardown(self) -> None:
        """Close and delete."""
        self.disk.close()
        shutil.rmtree(self.folder)

    def _touch(self, offset: int, length: int) -> None:
        if length:
            self.touched.update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))

    @rule(offset=st.one_of(OFFSETS, EDGES), length=LENGTHS, seed=st.integers(1, 1 << 30))
    def write(self, offset: int, length: int, seed: int) -> None:
        """Write random bytes."""
        data = random.Random(seed).randbytes(min(length, SIZE - offset))
        self.disk.write(offset, data)
        self.model[offset : offset + len(data)] = data
        self._touch(offset, len(data))

    @rule(offset=st.one_of(OFFSETS, EDGES), length=LENGTHS)
    def zero(self, offset: int, length: int) -> None:
        """Zero a range."""
        length = min(length, SIZE - offset)
        self.disk.zero(offset, length)
        self.model[offset : offset + length] = bytes(length)
        self._touch(offset, length)

    @rule(offset=st.one_of(OFFSETS, EDGES), length=LENGTHS)
    def read(self, offset: int, length: int) -> None:
        """Read a range."""
        length = min(length, SIZE - offset)
        assert self.disk.read(offset, length) == self.model[offset : offset + length]

    @rule()
    def flush(self) -> None:
        """Flush."""
        self.disk.flush()
        self.flushed = bytes(self.model)
        self.touched.clear()

    @rule()
    def reopen(self) -> None:
        """Close and open."""
        self.disk.close()
        self.flushed = bytes(self.model)
        self.touched.clear()
        self.disk = self.bench.open()

    @rule()
    def kill(self) -> None:
        """Lose the process only: every write that returned is there."""
        abandon(self.bench, self.disk)
        self.disk = self.bench.open()
        assert self.disk.read(0, SIZE) == self.model

    @rule(seed=st.integers(0, 1 << 30))
    def crash(self, seed: int) -> None:
        """Lose the process and, of the data written since the last flush, any 512-byte sectors.

        The map and the journal change in flushes only, so they are as the last flush left them. Data of blocks
        that no flush covered may be anything between before and after.
        """
        abandon(self.bench, self.disk)
        restart_machine(self.bench.files.private / "live", 16)
        chance = random.Random(seed)
        with (self.bench.files.private / "data").open("r+b") as file:
            for block in sorted(self.touched):
                if chance.random() < 0.3:
                    within = 512 * chance.randrange(min(8, (SIZE - block * BLOCK) // 512))
                    file.seek(block * BLOCK + within)
                    file.write(b"\xa5" * 512)
        self.disk = self.bench.open()
        found = self.disk.read(0, SIZE)
        for block in range(-(-SIZE // BLOCK)):
            here = slice(block * BLOCK, (block + 1) * BLOCK)
            if block not in self.touched:
                assert found[here] == self.flushed[here], f"block {block} lost what was flushed"
        # What the crash left is the truth from now on.
        self.model = bytearray(found)
        self.flushed = found
        self.touched.clear()

    @invariant()
    def counts(self) -> None:
        """The private bytes are whole blocks."""
        assert self.bench.files.read_counters()[Counter.PRIVATE_BYTES] % BLOCK == 0


DiskMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestDisk = DiskMachine.TestCase


def test_partial_write_keeps_the_rest_of_the_block(bench: Bench) -> None:
    with opened(bench) as disk:
        disk.write(3 * CHUNK + 100, b"x" * 10)
        expected = SOURCE[3 * CHUNK : 3 * CHUNK + 100] + b"x" * 10 + SOURCE[3 * CHUNK + 110 : 3 * CHUNK + BLOCK]
        assert disk.read(3 * CHUNK, BLOCK) == expected


def test_whole_blocks_need_no_recall(bench: Bench) -> None:
    with opened(bench) as disk:
        disk.write(3 * CHUNK, b"x" * 2 * BLOCK)
        disk.zero(5 * CHUNK, BLOCK)
        assert disk.read(3 * CHUNK, 2 * BLOCK) == b"x" * 2 * BLOCK
        assert disk.read(5 * CHUNK, BLOCK) == bytes(BLOCK)
        # The last block ends with the disk: it is whole too.
        last = SIZE // BLOCK * BLOCK
        disk.write(last, b"z" * (SIZE - last))
    assert bench.recalls == []


def test_holes_need_no_recall(bench: Bench) -> None:
    with opened(bench) as disk:
        assert disk.read(0, CHUNK) == bytes(CHUNK)
    assert bench.recalls == []


def test_many_readers_of_a_chunk_recall_it_once(bench: Bench) -> None:
    bench.gate.clear()
    with opened(bench) as disk:
        results: list[bytes] = []
        threads = [
            threading.Thread(target=lambda at=at: results.append(disk.read(3 * CHUNK + at * BLOCK, BLOCK)))
            for at in range(8)
        ]
        for thread in threads:
            thread.start()
        # Hits are answered while the recall is under way.
        disk.write(7 * CHUNK, b"h" * BLOCK)
        assert disk.read(7 * CHUNK, BLOCK) == b"h" * BLOCK
        assert disk.read(0, BLOCK) == bytes(BLOCK)
        bench.gate.set()
        for thread in threads:
            thread.join()
        assert len(results) == 8
    assert bench.recalls == [3 * CHUNK]


def test_failed_recall_fails_its_blocks_only_and_is_tried_again(bench: Bench) -> None:
    bench.fail = {3}
    with opened(bench) as disk:
        with pytest.raises(OSError, match="Input/output error"):
            disk.read(3 * CHUNK, BLOCK)
        with pytest.raises(OSError, match="Input/output error"):
            disk.write(3 * CHUNK + 1, b"x")
        assert disk.read(5 * CHUNK, CHUNK) == SOURCE[5 * CHUNK : 6 * CHUNK]
        disk.write(3 * CHUNK, b"y" * BLOCK)
        bench.fail = set()
        assert disk.read(3 * CHUNK, 2 * BLOCK) == b"y" * BLOCK + SOURCE[3 * CHUNK + BLOCK : 3 * CHUNK + 2 * BLOCK]


def test_recall_store_is_shared_and_survives(bench: Bench, tmp_path: Path) -> None:
    with opened(bench) as disk:
        disk.read(3 * CHUNK, 1)
        other = Bench(tmp_path / "other")
        other.recall_store = bench.recall_store
        with opened(other) as second:
            assert second.read(3 * CHUNK, CHUNK) == SOURCE[3 * CHUNK : 4 * CHUNK]
            second.read(5 * CHUNK, 1)
        disk.read(5 * CHUNK, CHUNK)
        assert (bench.recalls, other.recalls) == ([3 * CHUNK], [5 * CHUNK])
    assert bench.recall_store.stored_bytes() == 2 * CHUNK
    with opened(bench) as disk:
        disk.read(3 * CHUNK, CHUNK)
    assert bench.recalls == [3 * CHUNK]


def test_recall_store_after_a_restart_of_the_machine(bench: Bench) -> None:
    with opened(bench) as disk:
        disk.read(3 * CHUNK, 1)
        bench.recall_store.checkpoint()
        disk.read(5 * CHUNK, 1)
    restart_machine(bench.recall_store.folder / "live", 24)
    with opened(bench) as disk:
        disk.read(3 * CHUNK, 1)
        disk.read(5 * CHUNK, 1)
    # What was not yet durable is recalled again.
    assert bench.recalls == [3 * CHUNK, 5 * CHUNK, 5 * CHUNK]
    restart_machine(bench.recall_store.folder / "live", 24)
    durable = bench.recall_store.folder / "durable"
    durable.write_bytes(durable.read_bytes()[:-1] + b"\x07")
    with opened(bench) as disk:
        assert disk.read(3 * CHUNK, CHUNK) == SOURCE[3 * CHUNK : 4 * CHUNK]
    assert bench.recalls[3:] == [3 * CHUNK]


def test_last_user_takes_the_recall_store_with_it(bench: Bench) -> None:
    bench.recall_store.join("one", [])
    bench.recall_store.join("two", [])
    bench.recall_store.leave("one")
    assert (bench.recall_store.folder / "live").stat().st_size == HEADER + -(-SIZE // CHUNK)
    bench.recall_store.leave("two")
    assert not bench.recall_store.folder.exists()


def test_identity_that_is_a_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match="hex digits"):
        RecallStore(tmp_path, Facts("../../etc", SIZE, CHUNK))


def flip(path: Path, at: int) -> None:
    """Damage one byte."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("at", [1536 + 3, 1536 + 200, 1536 + 511])
def test_damaged_map_is_detected(bench: Bench, at: int) -> None:
    with opened(bench) as disk:
        disk.write(0, b"x" * BLOCK)
    flip(bench.files.private / "map", at)
    with pytest.raises(CorruptError, match="map sector 0"):
        bench.open()


def test_torn_map_of_a_killed_checkpoint_is_repaired_from_the_journal(bench: Bench) -> None:
    journalled(bench, 1)
    with (bench.files.private / "map").open("r+b") as file:
        file.seek(1536)
        file.write(b"\x5a" * 300)
    with opened(bench) as disk:
        assert disk.read(0, BLOCK) == b"\1" * BLOCK


def test_damaged_header_and_missing_files_are_detected(bench: Bench) -> None:
    with opened(bench) as disk:
        disk.write(0, b"x" * BLOCK)
    flip(bench.files.private / "map", 14)
    flip(bench.files.private / "map", 512 + 14)
    with pytest.raises(CorruptError, match="header"):
        bench.open()
    (bench.files.private / "data").unlink()
    with pytest.raises(CorruptError, match="data file"):
        bench.open()


def journalled(bench: Bench, records: int) -> None:
    """Leave a store behind as a crash of the machine after `records` flushes does."""
    disk = bench.open()
    for number in range(records):
        disk.write(number * BLOCK, bytes([number + 1]) * BLOCK)
        disk.flush()
    abandon(bench, disk)
    restart_machine(bench.files.private / "live", 16)


def test_torn_last_journal_record_is_dropped(bench: Bench) -> None:
    journalled(bench, 3)
    with (bench.files.private / "journal").open("r+b") as file:
        file.seek(-512, os.SEEK_END)
        unused = file.read()
        file.seek(2 * 1024 + 512)
        file.write(unused)
    with opened(bench) as disk:
        assert disk.read(0, 2 * BLOCK) == b"\1" * BLOCK + b"\2" * BLOCK
        assert disk.read(2 * BLOCK, BLOCK) == SOURCE[2 * BLOCK : 3 * BLOCK]


@pytest.mark.parametrize("record", [1, 2, 3])
@pytest.mark.parametrize("at", [5, 512 + 100])
def test_damaged_journal_record_is_detected(bench: Bench, record: int, at: int) -> None:
    journalled(bench, 3)
    flip(bench.files.private / "journal", (record - 1) * 1024 + at)
    with pytest.raises(CorruptError, match=f"journal record {record}"):
        bench.open()


def test_journal_starts_again_when_it_is_full(bench: Bench) -> None:
    expected = {}
    disk = bench.open()
    for number in range(1500):
        block = number * 7 % 2200
        expected[block] = bytes([number % 251 + 1]) * BLOCK
        disk.write(block * BLOCK, expected[block])
        disk.flush()
    abandon(bench, disk)
    restart_machine(bench.files.private / "live", 16)
    with opened(bench) as disk:
        for block, data in expected.items():
            assert disk.read(block * BLOCK, BLOCK) == data


def test_flush_after_a_kill_covers_what_the_killed_process_wrote(bench: Bench) -> None:
    disk = bench.open()
    disk.write(3 * CHUNK, b"x" * BLOCK)
    abandon(bench, disk)
    disk = bench.open()
    disk.flush()
    abandon(bench, disk)
    restart_machine(bench.files.private / "live", 16)
    with opened(bench) as disk:
        assert disk.read(3 * CHUNK, BLOCK) == b"x" * BLOCK


def test_concurrent_parts_of_one_block(bench: Bench) -> None:
    """Eight writers of neighbouring parts of blocks not yet private: none may undo another's."""
    blocks = range(CHUNK // BLOCK, 9 * CHUNK // BLOCK)
    barrier = threading.Barrier(8)
    with opened(bench) as disk:
        disk.read(CHUNK, 8 * CHUNK)

        def write(part: int) -> None:
            for block in blocks:
                barrier.wait(30)
                disk.write(block * BLOCK + part * 512, bytes([part + 1]) * 512)

        threads = [threading.Thread(target=write, args=(part,)) for part in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = b"".join(bytes([part + 1]) * 512 for part in range(8))
        assert disk.read(CHUNK, 8 * CHUNK) == expected * len(blocks)


def test_requests_beyond_the_disk_are_refused(bench: Bench) -> None:
    with opened(bench) as disk:
        with pytest.raises(OSError, match="File too large"):
            disk.write(SIZE - 1, b"xx")
        with pytest.raises(OSError, match="Invalid"):
            disk.read(SIZE, 1)
        with pytest.raises(OSError, match="Invalid"):
            disk.read((1 << 64) - 1, 8)


def test_close_fails_what_still_waits(bench: Bench) -> None:
    bench.gate.clear()
    disk = bench.open()
    failures: list[OSError] = []

    def read(chunk: int) -> None:
        try:
            disk.read(chunk * CHUNK, 1)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=read, args=(chunk,)) for chunk in range(3, 3 + 12, 2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while len(bench.recalls) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    closer = threading.Thread(target=disk.close)
    closer.start()
    bench.gate.set()
    for thread in [*threads, closer]:
        thread.join(10)
        assert not thread.is_alive()
    assert len(failures) <= 2
