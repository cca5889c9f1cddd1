"""The quota of the recall stores: what goes, what stays, what is only handed over; against kills and races as well."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from livemount._native import PseudoDisk
from livemount.core.errors import CorruptError
from livemount.core.quota import Quota
from livemount.driver.layout import COUNTERS_SIZE, DiskFiles, Facts
from livemount.driver.ledger import Entry, Ledger
from livemount.driver.recall_store import RecallStore
from livemount.driver.recall_stores import RecallPolicy, RecallStores

CHUNK = 65536
CHUNKS = 32
SIZE = CHUNKS * CHUNK
OVERHEAD = 64 << 10
"""More than a store takes for its states."""
COPIES = {name: random.Random(name).randbytes(SIZE) for name in ("aa", "bb", "cc")}


class Disk:
    """A disk of one copy."""

    def __init__(self, folder: Path, user: str, copy: str) -> None:
        self.copy = copy
        self.user = user
        self.store = RecallStore(folder / "recall", Facts(copy * 32, SIZE, CHUNK))
        self.store.join(user, [])
        files = DiskFiles(folder / user)
        files.private.mkdir(parents=True, exist_ok=True)
        files.counters.write_bytes(bytes(COUNTERS_SIZE))
        self.recalls = 0
        """Those that somebody waited for."""
        self.recalled = 0
        """Bytes."""
        self.native = PseudoDisk(files.private, self.store.folder, SIZE, CHUNK, self._recall, 2)

    def _recall(self, offset: int, length: int, background: bool) -> bytes:
        self.recalls += not background
        self.recalled += length
        return COPIES[self.copy][offset : offset + length]

    def read(self, first: int = 0, count: int = CHUNKS) -> None:
        """Read chunks, which must be right; backwards, so that nothing is recalled ahead."""
        for chunk in reversed(range(first, first + count)):
            at = chunk * CHUNK
            assert self.native.read(at, CHUNK) == COPIES[self.copy][at : at + CHUNK]

    def end(self, *, keep: bool) -> None:
        """As a mount ends."""
        self.native.close()
        self.store.leave(self.user, keep=keep)


def recall_stores(folder: Path, quota: int, *, keep: bool = False) -> RecallStores:
    stores = RecallStores(folder / "recall", RecallPolicy(Quota(quota), keep))
    stores.tidy()
    return stores


def names(folder: Path) -> set[str]:
    return {path.name[:2] for path in (folder / "recall").iterdir() if path.is_dir()}


@contextmanager
def a_disk(folder: Path, user: str, copy: str, *, keep: bool = False) -> Iterator[Disk]:
    disk = Disk(folder, user, copy)
    try:
        yield disk
    finally:
        disk.end(keep=keep)


def test_at_the_quota_chunks_are_handed_over_and_not_kept(tmp_path: Path) -> None:
    stores = recall_stores(tmp_path, 8 * CHUNK + OVERHEAD)
    with a_disk(tmp_path, "one", "aa") as disk:
        stores.tidy()
        disk.read()
        stores.tidy()
        assert 8 * CHUNK <= stores.stats().used_bytes <= stores.stats().quota_bytes == 8 * CHUNK + OVERHEAD
        assert disk.store.stored_bytes() in (8 * CHUNK, 9 * CHUNK)
        assert stores.stats().not_kept_chunks >= CHUNKS - 9
        before = disk.recalls
        disk.read()
        assert CHUNKS - 9 <= disk.recalls - before <= CHUNKS - 8

        # With more room it keeps again.
        recall_stores(tmp_path, 2 * SIZE)
        disk.read()
        before = disk.recalls
        disk.read()
        assert disk.recalls == before
        assert disk.store.stored_bytes() == SIZE


def test_a_quota_of_nothing_keeps_nothing_but_zeros(tmp_path: Path) -> None:
    stores = recall_stores(tmp_path, 0)
    with a_disk(tmp_path, "one", "aa") as disk:
        disk.read()
        assert (disk.store.stored_bytes(), stores.stats().not_kept_chunks) == (0, CHUNKS)


def test_without_room_nothing_is_recalled_ahead(tmp_path: Path) -> None:
    recall_stores(tmp_path, 0)
    background: list[int] = []
    with a_disk(tmp_path, "one", "aa") as disk:
        disk.native.close()
        files = DiskFiles(tmp_path / "one")

        def recall(offset: int, length: int, is_background: bool) -> bytes:
            background.extend([offset] * is_background)
            return COPIES["aa"][offset : offset + length]

        disk.native = PseudoDisk(files.private, disk.store.folder, SIZE, CHUNK, recall, 4)
        disk.native.prefetch(list(range(CHUNKS)))
        disk.read()
        assert background == []


def test_unused_stores_go_first_the_one_left_first_before_others(tmp_path: Path) -> None:
    quota = 2 * (SIZE + OVERHEAD) + 8 * CHUNK
    stores = recall_stores(tmp_path, quota, keep=True)
    for copy in ("bb", "aa"):
        with a_disk(tmp_path, copy, copy, keep=True) as disk:
            disk.read()
    stores.tidy()
    assert (names(tmp_path), stores.stats().evictions) == ({"aa", "bb"}, 0)
    with a_disk(tmp_path, "one", "cc") as disk:
        disk.read(0, 16)
        stores.tidy()
        assert (names(tmp_path), stores.stats().evictions) == ({"aa", "cc"}, 1)
        disk.read()
        before = disk.recalls
        disk.read()
        assert disk.recalls == before
        assert stores.stats().not_kept_chunks <= 16
    assert names(tmp_path) == {"aa"}


def test_a_kept_store_serves_the_next_mount(tmp_path: Path) -> None:
    stores = recall_stores(tmp_path, 2 * SIZE, keep=True)
    with a_disk(tmp_path, "one", "aa", keep=True) as disk:
        disk.read()
        assert disk.recalled == SIZE
    stores.tidy()
    with a_disk(tmp_path, "two", "aa", keep=True) as disk:
        disk.read()
        assert disk.recalled == 0
    # Once nothing is to be kept any more, it goes; that is no eviction.
    stores = recall_stores(tmp_path, 2 * SIZE)
    assert (names(tmp_path), stores.stats().evictions) == (set(), 0)


def test_a_store_that_was_being_deleted_is_deleted(tmp_path: Path) -> None:
    with a_disk(tmp_path, "one", "aa") as disk:
        disk.read()
        disk.store.checkpoint()
        folder = disk.store.folder
    # Killed after some of its files were gone; then the next one as well.
    for _ in range(2):
        half = folder.with_name(f".discarded-{folder.name}")
        half.mkdir()
        (half / "durable").touch()
        with a_disk(tmp_path, "one", "aa") as disk:
            disk.read()
            assert disk.recalled == SIZE
        assert not half.exists()
    half.mkdir()
    recall_stores(tmp_path, SIZE)
    assert sorted(path.name for path in (tmp_path / "recall").iterdir()) == [".ledger", ".lock"]


def test_what_a_killed_worker_was_about_to_keep_costs_no_room(tmp_path: Path) -> None:
    stores = recall_stores(tmp_path, SIZE + OVERHEAD)
    with a_disk(tmp_path, "one", "aa") as disk:
        ledger = Ledger(tmp_path / "recall")
        ledger.write(Entry.KEPT, ledger.read()[Entry.KEPT] + SIZE)
        assert stores.has_changed()
        stores.tidy()
        assert not stores.has_changed()
        disk.read()
        assert disk.store.stored_bytes() == SIZE


def test_a_damaged_ledger_is_detected(tmp_path: Path) -> None:
    stores = recall_stores(tmp_path, SIZE)
    (tmp_path / "recall" / ".ledger").write_bytes(b"short")
    with pytest.raises(CorruptError, match="damaged"):
        stores.tidy()


class Model(RuleBasedStateMachine):
    """Mounts that come and go, workers that are replaced, a supervisor that looks now and then."""

    QUOTA = SIZE + 8 * CHUNK

    def __init__(self) -> None:
        super().__init__()
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self.stores = recall_stores(self.folder, self.QUOTA, keep=True)
        self.disks: dict[str, Disk] = {}
        self.left: list[str] = []

    def used(self) -> dict[str, int]:
        """What each store takes, by copy."""
        return {
            path.name[:2]: sum(file.stat().st_blocks * 512 for file in path.iterdir() if file.is_file())
            for path in (self.folder / "recall").iterdir()
            if path.is_dir()
        }

    @rule(user=st.sampled_from(["one", "two", "three"]), copy=st.sampled_from(list(COPIES)))
    def join(self, user: str, copy: str) -> None:
        if user not in self.disks:
            self.disks[user] = Disk(self.folder, user, copy)
            self.left = [each for each in self.left if each != copy]

    @precondition(lambda self: self.disks)
    @rule(data=st.data(), keep=st.booleans())
    def leave(self, data: st.DataObject, keep: bool) -> None:
        disk = self.disks.pop(data.draw(st.sampled_from(sorted(self.disks))))
        disk.end(keep=keep)
        if not any(each.copy == disk.copy for each in self.disks.values()):
            if keep:
                self.left.append(disk.copy)
            else:
                assert disk.copy not in self.used()

    @precondition(lambda self: self.disks)
    @rule(data=st.data(), first=st.integers(0, CHUNKS - 1), count=st.integers(1, CHUNKS))
    def read(self, data: st.DataObject, first: int, count: int) -> None:
        disk = self.disks[data.draw(st.sampled_from(sorted(self.disks)))]
        disk.read(first, min(count, CHUNKS - first))

    @precondition(lambda self: self.disks)
    @rule(data=st.data())
    def replace_worker(self, data: st.DataObject) -> None:
        old = self.disks[data.draw(st.sampled_from(sorted(self.disks)))]
        old.native.close()
        self.disks[old.user] = Disk(self.folder, old.user, old.copy)

    @rule()
    def tidy(self) -> None:
        before = self.used()
        self.stores.tidy()
        used = self.used()
        gone = [copy for copy in self.left if copy not in used]
        assert gone == self.left[: len(gone)], "the one left first goes first"
        self.left = self.left[len(gone) :]
        if gone:
            assert sum(before.values()) > self.QUOTA - self.QUOTA // 16, "nothing goes without need"
        assert not self.left or sum(used.values()) <= self.QUOTA
        entries = Ledger(self.folder / "recall").read()
        assert entries[Entry.LIMIT] - entries[Entry.KEPT] == max(0, self.QUOTA - sum(used.values()))
        assert self.stores.stats().used_bytes == sum(used.values())

    @invariant()
    def stores_of_disks_stay(self) -> None:
        used = self.used()
        for disk in self.disks.values():
            assert disk.copy in used
        for copy in self.left:
            assert copy in used

    @invariant()
    def the_quota_holds_but_for_the_maps(self) -> None:
        used = self.used()
        assert sum(used.values()) <= self.QUOTA + len(used) * OVERHEAD

    def teardown(self) -> None:
        for disk in self.disks.values():
            disk.end(keep=False)
        self._temporary.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


JOINER = """
import random, sys
from pathlib import Path
from livemount.driver.layout import Facts
from livemount.driver.recall_store import RecallStore
folder, user, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
chance = random.Random(user)
for number in range(rounds):
    store = RecallStore(folder, Facts(chance.choice(["aa", "bb"]) * 32, 1 << 20, 65536))
    store.join(user, [])
    files = [(store.folder / name).open("r+b") for name in ("data", "live")]
    for _ in range(20):
        for file in files:
            assert (store.folder / Path(file.name).name).samefile(f"/proc/self/fd/{file.fileno()}"), "it went"
    files[0].write(b"x" * 65536)
    for file in files:
        file.close()
    store.leave(user, keep=chance.random() < 0.7)
"""
EVICTOR = """
import sys
from pathlib import Path
from livemount.core.quota import Quota
from livemount.driver.recall_stores import RecallPolicy, RecallStores
stores = RecallStores(Path(sys.argv[1]), RecallPolicy(Quota(0), True))
while True:
    stores.tidy()
"""


def test_stores_are_evicted_while_others_join_and_leave_and_evictors_are_killed(tmp_path: Path) -> None:
    recall = tmp_path / "recall"
    recall_stores(tmp_path, 0, keep=True)
    running: list[subprocess.Popen[bytes]] = []

    def start(script: str, *words: str) -> subprocess.Popen[bytes]:
        running.append(subprocess.Popen([sys.executable, "-c", script, str(recall), *words]))
        return running[-1]

    try:
        joiners = [start(JOINER, user, "300") for user in ("one", "two")]
        ledger, evictions, kills = Ledger(recall), 0, 0
        while any(joiner.poll() is None for joiner in joiners) or not kills:
            evictor = start(EVICTOR)
            deadline = time.monotonic() + 30
            while ledger.read()[Entry.EVICTIONS] == evictions and any(joiner.poll() is None for joiner in joiners):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            evictions = ledger.read()[Entry.EVICTIONS]
            evictor.send_signal(signal.SIGKILL)
            evictor.wait()
            kills += 1
        assert [joiner.returncode for joiner in joiners] == [0, 0]
        assert evictions > 0
    finally:
        for process in running:
            process.kill()
            process.wait()
    recall_stores(tmp_path, 0, keep=True)
    assert sorted(path.name for path in recall.iterdir()) == [".ledger", ".lock"]
