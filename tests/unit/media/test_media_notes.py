"""Locks and pins of notes: nobody is let in beside one who is alone, whoever dies or falls silent."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemount import _native
from livemount.core.errors import ConflictError, CorruptError, UnavailableError
from livemount.media import notes
from livemount.media.notes import Locked, NotedPins, _process
from livemount.media.pins import Lock

NOBODY = "00000000-0000-0000-0000-000000000000 pid:[1] 1 1"
"""A process of another machine."""


@pytest.fixture
def store(tmp_path: Path) -> _native.Repository:
    return _native.Repository.init(tmp_path / "r", "p")


def other_lock(store: _native.Repository, *, age: float = 0, process: str = NOBODY, alone: bool = True) -> str:
    """A lock that somebody left."""
    note = Locked(
        lock=Lock.PACKS,
        alone=alone,
        holder="other",
        time=datetime.now(UTC) - timedelta(seconds=age),
        machine="elsewhere",
        process=process,
    )
    return store.write_note(note.model_dump_json().encode())


@settings(max_examples=10, deadline=None)
@given(plan=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=2, max_size=6))
def test_nobody_is_beside_one_who_is_alone(
    tmp_path_factory: pytest.TempPathFactory, plan: list[tuple[bool, int]]
) -> None:
    path = tmp_path_factory.mktemp("notes") / "r"
    _native.Repository.init(path, "p")
    store = _native.Repository.open(path, "p")
    inside: list[bool] = []
    guard = threading.Lock()

    def work(step: tuple[bool, int]) -> bool:
        alone, wait = step
        time.sleep(wait / 1000)
        with NotedPins("r", store).locked(Lock.PACKS, alone=alone, patience=30) as held:
            with guard:
                inside.append(alone)
                good = inside == [True] if alone else True not in inside
            time.sleep(random.uniform(0, 0.01))
            held()
            with guard:
                inside.remove(alone)
        return good

    with ThreadPoolExecutor(len(plan)) as pool:
        assert all(pool.map(work, plan))
    assert [note for note in map(store.read_note, store.notes()) if b'"lock"' in (note or b"")] == []


def test_a_lock_of_another_machine_counts_until_its_lease_is_over(store: _native.Repository) -> None:
    pins = NotedPins("r", store)
    left = other_lock(store, age=notes.LEASE - 30)
    with (
        pytest.raises(ConflictError, match="elsewhere"),
        pins.locked(Lock.PACKS, alone=False, patience=0),
    ):
        pass
    with pins.locked(Lock.PINS, alone=True, patience=0):
        pass
    store.remove_note(left)
    over = other_lock(store, age=notes.LEASE + 1)
    with pins.locked(Lock.PACKS, alone=True, patience=0):
        assert over not in store.notes()


def test_a_lock_of_a_process_of_this_machine_that_is_gone_counts_no_more(store: _native.Repository) -> None:
    boot, namespace, process, started = _process().split()
    other_lock(store, process=f"{boot} {namespace} {process} {int(started) - 1}")
    pins = NotedPins("r", store)
    with pins.locked(Lock.PACKS, alone=True, patience=0):
        pass
    other_lock(store, process=_process())
    with pytest.raises(ConflictError), pins.locked(Lock.PACKS, alone=True, patience=0):
        pass


def test_a_lock_is_renewed_while_it_is_held(store: _native.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "RENEWED_EVERY", 0.01)
    with NotedPins("r", store).locked(Lock.PACKS, alone=True) as held:
        first = set(store.notes())
        deadline = time.monotonic() + 30
        while first & set(store.notes()) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        held()
        with pytest.raises(ConflictError), NotedPins("r", store).locked(Lock.PACKS, alone=False, patience=0):
            pass
    with NotedPins("r", store).locked(Lock.PACKS, alone=True, patience=0):
        pass


def test_who_lost_a_lock_is_told(store: _native.Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    with NotedPins("r", store).locked(Lock.PACKS, alone=True) as held:
        held()
        monkeypatch.setattr(notes, "LEASE", 0.0)
        with pytest.raises(UnavailableError, match="lost"):
            held()


def test_a_holder_has_one_pin(store: _native.Repository) -> None:
    snapshots = ["a" * 64, "b" * 64]

    class Store:
        """The store, as if it had these snapshots."""

        notes, read_note, write_note, remove_note = (
            store.notes,
            store.read_note,
            store.write_note,
            store.remove_note,
        )

        def state(self) -> tuple[bytes, list[str]]:
            return b"", snapshots

    pins = NotedPins("r", Store())
    pins.pin("m", snapshots[0], "first")
    pins.pin("m", "bbbb", "second")
    pins.pin("n", snapshots[1], "third")
    assert {id: [pin.reason for pin in found] for id, found in pins.all().items()} == {
        snapshots[1]: ["second", "third"]
    }
    pins.unpin("m")
    assert [pin.reason for pin in NotedPins("r", store).all()[snapshots[1]]] == ["third"]


def test_a_note_that_is_damaged_or_foreign_stops_everything(store: _native.Repository, tmp_path: Path) -> None:
    pins = NotedPins("r", store)
    pins.begin()
    id = store.write_note(b"{}")
    with pytest.raises(CorruptError, match=id):
        pins.all()
    store.remove_note(id)
    (path,) = (tmp_path / "r" / "livemount" / "locks").iterdir()
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(CorruptError, match=path.name):
        NotedPins("r", store).all()
