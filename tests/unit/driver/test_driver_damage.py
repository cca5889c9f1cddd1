"""Damage anywhere in the stores' own files: what was flushed is served, or an error names the store."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from livemount._native import PseudoDisk
from livemount.core.errors import CorruptError
from livemount.driver.layout import COUNTERS_SIZE, Facts
from livemount.driver.recall_store import HEADER, RecallStore

BLOCK = 4096
SECTOR = 512
CHUNK = 65536
MAP_SECTORS = 60
SIZE = MAP_SECTORS * 2016 * BLOCK
FACTS = Facts("ab" * 32, SIZE, CHUNK)
BLOCKS = [number * 2016 + 7 * number for number in range(MAP_SECTORS)]
"""One in each sector of the map but the last ones."""
UNUSED = 3
MAP_LENGTH = (2 + 1 + MAP_SECTORS) * SECTOR
JOURNAL_LENGTH = 1 << 20


def source(offset: int, length: int, _background: bool = False) -> bytes:
    """Another byte for each chunk."""
    return b"".join(bytes([1 + at // CHUNK % 250]) * CHUNK for at in range(offset, offset + length, CHUNK))


def block_of(number: int) -> bytes:
    """What a write puts into a block."""
    return number.to_bytes(4, "little") * (BLOCK // 4)


def of_source(block: int) -> bytes:
    """A block that was never written."""
    return source(block * BLOCK // CHUNK * CHUNK, CHUNK)[:BLOCK]


def twin(folder: Path, copy: Path) -> None:
    """A copy of stores; `data` is large and sparse, and nothing changes it: it is a link."""

    def link_data(old: str, new: str) -> object:
        return (os.link if old.endswith("/data") else shutil.copyfile)(old, new)

    shutil.copytree(folder, copy, copy_function=link_data)


@dataclass(frozen=True)
class Store:
    """A private store as a crash of the machine after a flush leaves it, and what its blocks are."""

    folder: Path
    private: Path
    blocks: dict[int, bytes] = field(repr=False)

    def open(self) -> PseudoDisk:
        """The disk."""
        recall_store = RecallStore(self.folder / "recall", FACTS)
        recall_store.join("disk", [])
        return PseudoDisk(self.private, recall_store.folder, SIZE, CHUNK, source, 2)

    def fill(self, rounds: int, close: bool) -> None:
        """Change a block in each sector of the map and flush, `rounds` times; then crash, or close and crash."""
        self.private.mkdir(parents=True)
        (self.private / "counters").write_bytes(bytes(COUNTERS_SIZE))
        disk = self.open()
        for number in range(rounds):
            for block in BLOCKS[:-UNUSED]:
                if (number + block) % 3 == 0:
                    disk.zero(block * BLOCK, BLOCK)
                    self.blocks[block] = bytes(BLOCK)
                else:
                    self.blocks[block] = block_of(number * 100 + block)
                    disk.write(block * BLOCK, self.blocks[block])
            disk.flush()
        if close:
            disk.close()
        kept = self.folder / "kept"
        twin(self.private, kept)
        if not close:
            disk.close()
        shutil.rmtree(self.private)
        kept.rename(self.private)
        with (self.private / "live").open("r+b") as file:
            file.seek(16)
            file.write(b"0" * 36)

    def equals(self) -> None:
        """The disk is what was flushed."""
        disk = self.open()
        try:
            for block, expected in self.blocks.items():
                assert disk.read(block * BLOCK, BLOCK) == expected, f"block {block}"
        finally:
            disk.close()


SHAPES = {
    "fresh": (0, True),
    "closed": (2, True),
    "one flush": (1, False),
    "some flushes": (5, False),
    # The journal was full once and starts again: older records lie behind the new ones.
    "full once": (60, False),
    "full once, closed": (60, True),
}


@pytest.fixture(scope="module")
def stores() -> Iterator[dict[str, Store]]:
    """One of each shape, to be copied."""
    folder = Path(tempfile.mkdtemp(prefix="livemount-damage-", dir="/dev/shm"))
    found = {}
    for name, (rounds, close) in SHAPES.items():
        found[name] = Store(folder / name, folder / name / "private", {block: of_source(block) for block in BLOCKS})
        found[name].fill(rounds, close)
    yield found
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Damage:
    """Bytes from a place on that are zeros now, or random; or, without a length, the end of the file."""

    at: int
    length: int
    seed: int | None

    def apply(self, content: bytearray) -> None:
        """Do it. Places beyond the end count from the start again."""
        if not content:  # an earlier damage has left nothing
            return
        start = self.at % len(content)
        if self.length == 0:
            del content[start:]
            return
        length = min(self.length, len(content) - start)
        content[start : start + length] = bytes(length) if self.seed is None else Random(self.seed).randbytes(length)


def sectors(first: int, count: int) -> Damage:
    """Whole sectors that are zeros now."""
    return Damage(first * SECTOR, count * SECTOR, None)


def damages(length: int, used: int) -> st.SearchStrategy[Damage]:
    """Damage to a file of which the first `used` bytes matter most."""
    at = st.one_of(st.integers(0, used - 1), st.integers(0, length - 1))
    seed = st.integers(0, 1000)
    return st.one_of(
        st.builds(Damage, at, st.just(1), seed),
        st.builds(sectors, at.map(lambda at: at // SECTOR), st.integers(1, 8)),
        st.builds(Damage, at, st.integers(0, 2000), seed),
    )


FILES = {
    "map": damages(MAP_LENGTH, MAP_LENGTH),
    "journal": damages(JOURNAL_LENGTH, 10 * SECTOR * MAP_SECTORS),
    "live": damages(4096 + MAP_SECTORS * 504, 4096),
}
PLANS = st.lists(
    st.sampled_from(sorted(FILES)).flatmap(lambda name: st.tuples(st.just(name), FILES[name])), min_size=1, max_size=2
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.sampled_from(sorted(SHAPES)), plan=PLANS)
# A map sector that was stored is zeros now; the only record of the journal; the header that is newer.
@example(shape="closed", plan=[("map", sectors(3, 1))])
@example(shape="one flush", plan=[("journal", sectors(0, 1))])
@example(shape="one flush", plan=[("journal", sectors(1, 8))])
@example(shape="full once, closed", plan=[("map", sectors(0, 1))])
@example(shape="full once, closed", plan=[("map", sectors(1, 1))])
@example(shape="full once", plan=[("map", sectors(0, 1))])
@example(shape="full once", plan=[("map", sectors(1, 1))])
@example(shape="full once", plan=[("map", sectors(2, 1))])
def test_damage_is_repaired_or_refused(stores: dict[str, Store], shape: str, plan: list[tuple[str, Damage]]) -> None:
    intact = stores[shape]
    folder = intact.folder / "damaged"
    twin(intact.private, folder)
    try:
        for name, damage in plan:
            content = bytearray((folder / name).read_bytes())
            damage.apply(content)
            (folder / name).write_bytes(content)
        try:
            replace(intact, private=folder).equals()
        except CorruptError as error:
            assert str(folder) in str(error)  # noqa: PT017
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["map", "journal", "data"])
def test_a_file_that_is_gone_is_an_error(stores: dict[str, Store], name: str) -> None:
    intact = stores["some flushes"]
    folder = intact.folder / "incomplete"
    twin(intact.private, folder)
    try:
        (folder / name).unlink()
        with pytest.raises(CorruptError, match=f"the {name}.* of private store {folder} is gone"):
            replace(intact, private=folder).open()
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def recalled() -> Iterator[Path]:
    """A recall store after a restart of the machine, its first 40 chunks here."""
    folder = Path(tempfile.mkdtemp(prefix="livemount-damage-", dir="/dev/shm"))
    store = Store(folder, folder / "private", {})
    store.fill(0, True)
    disk = store.open()
    disk.read(0, 40 * CHUNK)
    disk.close()
    RecallStore(folder / "recall", FACTS).checkpoint()
    yield folder / "recall"
    shutil.rmtree(folder)


def check_recalled(intact: Path, change: Callable[[Path], None]) -> list[int]:
    """Change a copy of the recall store, and start the machine again; which chunks are here then."""
    folder = intact.parent / "damaged"
    twin(intact, folder)
    try:
        store = RecallStore(folder, FACTS)
        (store.folder / "live").unlink()
        change(store.folder)
        store.join("disk", [])
        states = (store.folder / "live").read_bytes()[HEADER:]
        with (store.folder / "data").open("rb") as data:
            for chunk, state in enumerate(states):
                assert state in (0, 1)
                if state == 1:
                    data.seek(chunk * CHUNK)
                    assert data.read(CHUNK) == source(chunk * CHUNK, CHUNK)
        return [chunk for chunk, state in enumerate(states) if state]
    finally:
        shutil.rmtree(folder)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages(64 + MAP_SECTORS * 2016 * BLOCK // CHUNK, 110))
def test_recall_store_with_a_damaged_note_is_recalled_again(recalled: Path, damage: Damage) -> None:
    def change(folder: Path) -> None:
        content = bytearray((folder / "durable").read_bytes())
        damage.apply(content)
        (folder / "durable").write_bytes(content)

    assert check_recalled(recalled, change) in ([], list(range(40)))


def shorten(path: Path) -> None:
    """Make a file of one chunk only."""
    path.unlink()
    path.write_bytes(source(0, CHUNK))


def test_recall_store_without_its_data_is_recalled_again(recalled: Path) -> None:
    assert check_recalled(recalled, lambda _: None) == list(range(40))
    assert check_recalled(recalled, lambda folder: (folder / "data").unlink()) == []
    assert check_recalled(recalled, lambda folder: shorten(folder / "data")) == []
