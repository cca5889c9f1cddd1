"""Power cuts at any moment: the stores lie on a file system that logs what it is told, and every state that its disk
may then be in is opened again.

What a sector may hold after a cut: what the last acknowledged flush covered, or anything that was written or zeroed
since. Nothing else, and the stores always open.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import struct
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from livemount._native import PseudoDisk
from livemount.driver.layout import DiskFiles, Facts
from livemount.driver.recall_store import HEADER, RecallStore
from tests.support.power_cut import MODES, DiskState, LoggedFolder, Record

pytestmark = pytest.mark.integration

SECTOR = 512
BLOCK = 4096
CHUNK = 65536
MAP_SECTOR = 2016 * BLOCK
"""Bytes of a disk that one sector of the map speaks of."""
IDENTITY = "ab" * 32
ZEROS = bytes(SECTOR)


def pattern(operation: int, sector: int) -> bytes:
    """What an operation writes into a sector. Operation 0 is the source, of which every other chunk is zeros."""
    if operation == 0 and sector * SECTOR // CHUNK % 2 == 0:
        return ZEROS
    return struct.pack("<QQ", operation, sector) * (SECTOR // 16)


def source(offset: int, length: int, _background: bool = False) -> bytes:
    """The source's bytes."""
    return b"".join(pattern(0, sector) for sector in range(offset // SECTOR, (offset + length) // SECTOR))


@dataclass(frozen=True)
class Shape:
    """A disk and the blocks of it that are looked at, in pairs of neighbours."""

    size: int
    step: int
    """Bytes from one pair to about the next."""

    def pairs(self) -> list[int]:
        """First blocks of the pairs, the last one at the end of the disk."""
        chance = random.Random(self.size)
        starts = range(0, self.size - self.step, self.step)
        return [
            *(at // BLOCK + 2 * chance.randrange(self.step // BLOCK // 2 - 1) for at in starts),
            self.size // BLOCK - 1,
        ]

    def open(self, folder: Path) -> PseudoDisk:
        """The disk whose stores are below a folder, made if they are not there."""
        files = DiskFiles(folder)
        files.private.mkdir(parents=True, exist_ok=True)
        files.prepare_counters()
        recall_store = self.recall_store(folder)
        recall_store.join("disk", [])
        return PseudoDisk(files.private, recall_store.folder, self.size, CHUNK, source, 2)

    def recall_store(self, folder: Path) -> RecallStore:
        """The recall store below a folder."""
        return RecallStore(folder / "recall", Facts(IDENTITY, self.size, CHUNK))


@dataclass
class Model:
    """What each sector that is looked at may hold, following the notes in the log."""

    shape: Shape
    base: dict[int, bytes] = field(default_factory=dict)
    written: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    """Operations since the last acknowledged flush, and the last one before it."""
    acknowledged: int = 0
    covered: dict[int, int] = field(default_factory=dict)
    flushed: int = 0
    flushes: int = 0

    def __post_init__(self) -> None:
        if not self.base:
            for block in self.shape.pairs():
                for sector in range(block * 8, block * 8 + 16):
                    if (sector + 1) * SECTOR <= self.shape.size:
                        self.base[sector] = pattern(0, sector)
        self._sectors = sorted(self.base)

    def apply(self, words: list[str]) -> None:
        """Follow a note."""
        match words[0], [int(word) for word in words[1:]]:
            case "write" | "zero" as kind, [number, first, count]:
                for sector in self._sectors[
                    bisect_left(self._sectors, first) : bisect_left(self._sectors, first + count)
                ]:
                    value = pattern(number, sector) if kind == "write" else ZEROS
                    self.written.setdefault(sector, []).append((number, value))
            case "done", [number]:
                self.acknowledged = number
            case "flush", [flush]:
                self.covered[flush] = self.acknowledged
            case "flushed", [flush]:
                self.flushes += 1
                self.flushed = max(self.flushed, self.covered[flush])
                for sector, values in list(self.written.items()):
                    while values and values[0][0] <= self.flushed:
                        self.base[sector] = values.pop(0)[1]
                    if not values:
                        del self.written[sector]

    def check(self, disk: PseudoDisk) -> dict[int, bytes]:
        """Read everything that is looked at; what was found, by sector."""
        found = {}
        for block in self.shape.pairs():
            start = block * BLOCK
            data = disk.read(start, min(2 * BLOCK, self.shape.size - start))
            for at in range(0, len(data), SECTOR):
                sector, value = (start + at) // SECTOR, data[at : at + SECTOR]
                found[sector] = value
                if value != self.base[sector]:
                    allowed = [value for _, value in self.written.get(sector, [])]
                    assert value in allowed, (
                        f"sector {sector} holds {value[:16].hex()}, flushed was {self.base[sector][:16].hex()}, "
                        f"written since {[value[:16].hex() for value in allowed]}"
                    )
        return found


class Load:
    """Operations on a disk, one after the other, with flushes beside them, all noted in the log."""

    def __init__(self, shape: Shape, folder: LoggedFolder, seed: int, first: int) -> None:
        self._shape = shape
        self._folder = folder
        self._chance = random.Random(seed)
        self._number = first
        self._pairs = shape.pairs()
        self._near = self._pairs[:6]

    def run(self, disk: PseudoDisk, operations: int, flushes: int) -> None:
        """Operations in rounds, each with a flush beside its second half, and one alone after some."""
        for flush in range(flushes):
            for _ in range(operations // 2):
                self._operation(disk)
            flusher = threading.Thread(target=self._flush, args=(disk, self._number * 1000 + flush))
            flusher.start()
            for _ in range(operations // 2):
                self._operation(disk)
            flusher.join()
            if flush % 10 == 0:
                self._shape.recall_store(self._folder.path).checkpoint()

    def _flush(self, disk: PseudoDisk, number: int) -> None:
        self._folder.order("flush", number)
        with contextlib.suppress(OSError):
            disk.flush()
            self._folder.order("flushed", number)

    def _operation(self, disk: PseudoDisk) -> None:
        chance, self._number = self._chance, self._number + 1
        first = chance.choice(self._pairs) * 8
        count = 16 if chance.random() < 0.3 else 8
        kind = chance.choice(["write", "zero"])
        match chance.randrange(20):
            case 0:
                # Everything from here on, or half of the disk.
                first, count, kind = first // 2, self._shape.size // SECTOR // 2, "zero"
            case 1 | 2 | 3:
                # Parts of blocks need what was there before.
                first, count = chance.choice(self._near) * 8 + chance.randrange(8), chance.randrange(1, 9)
        count = min(count, self._shape.size // SECTOR - first)
        if kind == "zero":
            self.zero(disk, first * SECTOR, count * SECTOR)
        else:
            self._folder.order("write", self._number, first, count)
            with contextlib.suppress(OSError):
                data = b"".join(pattern(self._number, sector) for sector in range(first, first + count))
                disk.write(first * SECTOR, data)
                self._folder.order("done", self._number)

    def zero(self, disk: PseudoDisk, offset: int, length: int) -> None:
        """Zero a range."""
        self._folder.order("zero", self._number, offset // SECTOR, length // SECTOR)
        with contextlib.suppress(OSError):
            disk.zero(offset, length)
            self._folder.order("done", self._number)


def machine_restarted(folder: Path) -> None:
    """Make the mapped files look like ones of an earlier start of the machine."""
    for path, at in [(DiskFiles(folder).private / "live", 16), *((p, 24) for p in folder.glob("recall/*/live"))]:
        if path.exists():
            with path.open("r+b") as file:
                file.seek(at)
                file.write(b"0" * 36)


def check_recall_store(shape: Shape, folder: Path) -> int:
    """What the recall store says it has is the source's; how many chunks these are."""
    store = shape.recall_store(folder).folder
    states = (store / "live").read_bytes()[HEADER:]
    present = [chunk for chunk, state in enumerate(states) if state == 1]
    with (store / "data").open("rb") as data:
        for chunk in present:
            data.seek(chunk * CHUNK)
            length = min(CHUNK, shape.size - chunk * CHUNK)
            assert data.read(length) == source(chunk * CHUNK, length), f"recalled chunk {chunk}"
    assert not any(source(chunk * CHUNK, SECTOR).strip(b"\0") for chunk, state in enumerate(states) if state == 2)
    return len(present)


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder in memory: what cuts leave is written there."""
    folder = Path(tempfile.mkdtemp(prefix="livemount-cut-", dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


class Cuts:
    """Replays a log and opens what cuts leave."""

    def __init__(self, shape: Shape, folder: Path, model: Model, initial: Path | None = None) -> None:
        self.shape = shape
        self.folder = folder
        self.model = model
        self.state = DiskState(initial)
        self.count = 0
        self.recalled = 0

    def replay(self, records: list[Record], plan: dict[int, list[str]], seed: int) -> None:
        """`plan`: how to cut before which record."""
        for number, record in enumerate(records):
            for mode in plan.get(number, ()):
                self.cut(mode, random.Random(f"{seed} {number} {mode}"), f"cut before record {number}, {mode}")
            self.state.apply(record)
            if record[0] == "note":
                self.model.apply(record[1].split())

    def cut(self, mode: str, chance: random.Random, name: str) -> dict[int, bytes]:
        """One cut."""
        folder = self.folder / "cut"
        shutil.rmtree(folder, ignore_errors=True)
        self.state.materialise(folder, mode, chance)
        machine_restarted(folder)
        self.count += 1
        try:
            disk = self.shape.open(folder)
            try:
                self.recalled += check_recall_store(self.shape, folder)
                return self.model.check(disk)
            finally:
                disk.close()
        except Exception as error:
            error.add_note(name)
            raise


def inode_of(records: list[Record], name: str) -> int:
    """The inode of a file that was made under a name."""
    return int(next(record[3] for record in records if record[0] == "link" and record[2] == name))


def plan_for(
    records: list[Record], map_file: int, chance: random.Random, some: int, start: int = 0
) -> dict[int, list[str]]:
    """Every kind of cut around the map's syncs, a cut on each side of all others, and `some` more at random."""
    plan: dict[int, list[str]] = {}
    for number, record in enumerate(records):
        if number >= start and record[0] in ("sync", "syncfailed"):
            modes = MODES if record[1] == map_file else [chance.choice(MODES)]
            plan[number] = [*plan.get(number, ()), *modes]
            plan[number + 1] = [chance.choice(MODES)]
    for _ in range(some):
        plan.setdefault(chance.randrange(start, len(records)), []).append(chance.choice(MODES))
    return plan


DISK = Shape(104 * MAP_SECTOR + 3 * SECTOR, MAP_SECTOR // 2)


def logged_load(
    shape: Shape,
    work: Path,
    seed: int,
    rounds: tuple[int, int],
    first: int = 0,
    initial: Path | None = None,
    fail: str = "",
) -> list[Record]:
    """The log of a load. `fail` is what `LoggedFolder.note` takes."""
    with LoggedFolder(work, initial) as folder:
        disk = shape.open(folder.path)
        try:
            if fail:
                folder.order(fail)
            Load(shape, folder, seed, first).run(disk, *rounds)
        finally:
            with contextlib.suppress(OSError):
                disk.close()
        return folder.end()


def last_operation(records: list[Record]) -> int:
    """The number of the last operation that began."""
    notes = [record[1].split() for record in records if record[0] == "note"]
    return max(int(words[1]) for words in notes if words[0] in ("write", "zero"))


def test_power_cut_at_any_moment(tmp_path: Path, fast: Path) -> None:
    """And again, in a second load on what a cut of the first one left."""
    records = logged_load(DISK, tmp_path / "first", 1, (60, 80))
    map_file = inode_of(records, "map.new")
    cuts = Cuts(DISK, fast, Model(DISK))
    # The first load ends in the middle of a flush, the second one with a clean end.
    records = records[: max(number for number, record in enumerate(records[:-300]) if record[0] == "sync")]
    cuts.replay(records, plan_for(records, map_file, random.Random(2), 100), 3)
    assert records.count(("sync", map_file)) >= 3, "the journal was never full"
    assert cuts.model.flushes > 70

    found = cuts.cut("sectors", random.Random(4), "between the loads")
    initial = fast / "initial"
    cuts.state.materialise(initial, "sectors", random.Random(4))
    first = last_operation(records)
    records = logged_load(DISK, tmp_path / "second", 5, (60, 50), first, initial)
    second = Cuts(DISK, fast, Model(DISK, base=found), initial)
    map_file = second.state.inode("private/map")
    second.replay(records, plan_for(records, map_file, random.Random(6), 100), 7)
    assert records.count(("sync", map_file)) >= 4
    assert cuts.recalled > cuts.count
    assert cuts.count + second.count > 500


@pytest.mark.parametrize(
    ("fail", "flushes"),
    [("data 5 9 1", 9), ("journal 5 9 2", 18), ("map 5 0 2", 78), ("map 5 1 2", 78)],
)
def test_power_cut_after_a_failed_sync(tmp_path: Path, fast: Path, fail: str, flushes: int) -> None:
    """A flush whose sync failed is not acknowledged; nor is a later one that cannot know what the kernel dropped."""
    rounds = (60, 20 if flushes < 20 else 80)
    records = logged_load(DISK, tmp_path / "log", 8, rounds, fail=f"fail sync private/{fail}")
    cuts = Cuts(DISK, fast, Model(DISK))
    failed = next(number for number, record in enumerate(records) if record[0] == "syncfailed")
    cuts.replay(records, plan_for(records, inode_of(records, "map.new"), random.Random(9), 60, failed), 10)
    assert cuts.model.flushes == flushes
    assert cuts.count > 40


@pytest.mark.parametrize("file", ["journal", "map"])
def test_power_cut_after_a_kill_before_a_sync(tmp_path: Path, fast: Path, file: str) -> None:
    """The next process finds in the page cache what was written and never reached the disk."""
    with LoggedFolder(tmp_path / "log") as folder:
        disk = DISK.open(folder.path)
        load = Load(DISK, folder, 8, 0)
        load.run(disk, 60, 10)
        # Of the map's syncs the first is the one before the journal may start again.
        folder.order(f"fail sync private/{file} 5 {int(file == 'map')} 1000")
        load.run(disk, 60, 0 if file == "map" else 1)
        with contextlib.suppress(OSError):
            disk.close()
        folder.order(f"fail sync private/{file} 5 0 0")
        disk = DISK.open(folder.path)
        load.run(disk, 60, 3)
        disk.close()
        records = folder.end()
    cuts = Cuts(DISK, fast, Model(DISK))
    failed = max(number for number, record in enumerate(records) if record[0] == "syncfailed")
    cuts.replay(records, plan_for(records, inode_of(records, "map.new"), random.Random(9), 60, failed), 10)
    assert cuts.model.flushes == 13
    assert cuts.count > 60


def test_power_cut_after_a_failed_sync_of_the_recall_store(tmp_path: Path, fast: Path) -> None:
    """What the kernel may have dropped is recalled again, also after a later sync that succeeds."""
    with LoggedFolder(tmp_path / "log") as folder:
        disk = DISK.open(folder.path)
        store = DISK.recall_store(folder.path)
        disk.read(CHUNK, SECTOR)
        store.checkpoint()
        folder.order(f"fail sync recall/{store.folder.name}/data 5 0 1")
        disk.read(3 * CHUNK, SECTOR)
        with pytest.raises(OSError, match="Input/output error"):
            store.checkpoint()
        store.checkpoint()
        disk.close()
        records = folder.end()
    cuts = Cuts(DISK, fast, Model(DISK))
    cuts.replay(records, {len(records) - 1 - back: [*MODES] for back in range(12)}, 3)
    for mode in MODES:
        before = cuts.recalled
        cuts.cut(mode, random.Random(1), f"at the end, {mode}")
        assert cuts.recalled == before + 1


def test_power_cut_of_a_disk_whose_changes_exceed_the_journal(tmp_path: Path, fast: Path) -> None:
    """Zeroing all of a disk of 17 GiB changes more sectors of its map than the journal takes."""
    shape = Shape(2200 * MAP_SECTOR, 100 * MAP_SECTOR)
    with LoggedFolder(tmp_path / "log") as folder:
        disk = shape.open(folder.path)
        load = Load(shape, folder, 1, 0)
        load.zero(disk, 0, shape.size)
        load.run(disk, 20, 3)
        disk.close()
        records = folder.end()
    cuts = Cuts(shape, fast, Model(shape))
    map_file = inode_of(records, "map.new")
    cuts.replay(records, plan_for(records, map_file, random.Random(2), 30), 3)
    assert records.count(("sync", map_file)) >= 5


def test_power_cut_while_a_store_is_made(tmp_path: Path, fast: Path) -> None:
    records = logged_load(DISK, tmp_path / "log", 1, (0, 0))
    cuts = Cuts(DISK, fast, Model(DISK))
    cuts.replay(records, {number: [*MODES] for number in range(len(records))}, 3)
    cuts.cut("none", random.Random(0), "at the end")
    assert cuts.count > 100
