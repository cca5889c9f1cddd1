"""What an agent keeps open, and what it pins."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.agent import disks
from livemount.agent.cache import Cache
from livemount.agent.disks import Counters, Disks, Reader
from livemount.agent.pinned import Pinned
from livemount.core.errors import CorruptError, DeniedError, NotFoundError, UnavailableError
from livemount.core.secrets import write_secret
from livemount.media.repository import Repository
from livemount.media.source import Extent
from tests.support.foreign import MIB, write_disk


class Memory:
    """A source of 1 MiB and a bit; counts its reads."""

    size = MIB + 512
    identity = "cd" * 32
    chunk_size = 128 << 10

    def __init__(self) -> None:
        self.content = bytes(range(256)) * (self.size // 256)
        self.reads: list[tuple[int, int]] = []
        self.open = True
        self.gate = threading.Event()
        self.gate.set()

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        yield Extent(offset, length, hole=False)

    def read(self, offset: int, length: int) -> bytes:
        self.gate.wait()
        self.reads.append((offset, length))
        return self.content[offset : offset + length]

    def close(self) -> None:
        self.open = False


def reader(source: Memory, cache: Cache | None = None) -> Reader:
    return Reader("memory:", source, source.identity, cache, Counters())


def test_a_chunk_is_read_once_whoever_wants_it(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 8 * MIB)
    source = Memory()
    through = reader(source, cache)
    source.gate.clear()
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(through.read(1000, 300 << 10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    source.gate.set()
    for thread in threads:
        thread.join()
    assert set(found) == {source.content[1000 : 1000 + (300 << 10)]}
    assert sorted(source.reads) == [(number * (128 << 10), 128 << 10) for number in range(3)]
    assert through.read(MIB, 512) == source.content[MIB:]
    assert source.reads[-1] == (MIB, 512)
    cache.close()


def test_a_source_is_opened_once_and_closed_when_nobody_has_used_it_for_a_while() -> None:
    opened, source = Disks(), Memory()
    first, leave_first = opened.acquire("web01", lambda: reader(source))
    second, leave_second = opened.acquire("web01", lambda: pytest.fail("opened twice"))
    assert first is second
    leave_first(None)
    opened.sweep(0)
    assert source.open
    leave_second(None)
    opened.sweep(60)
    assert (source.open, opened.names(), opened.uris()) == (True, {"web01": 0}, {"memory:"})
    opened.sweep(0)
    assert (source.open, opened.names()) == (False, {})


def test_a_damaged_source_is_opened_anew() -> None:
    opened, source = Disks(), Memory()
    _, leave = opened.acquire("web01", lambda: reader(source))
    leave(CorruptError("changed"))
    assert not source.open
    fresh = Memory()
    again, leave = opened.acquire("web01", lambda: reader(fresh))
    assert again.source is fresh
    leave(UnavailableError("away"))
    assert fresh.open


def test_a_source_that_is_slow_to_open_is_there_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, source, ready = Disks(), Memory(), threading.Event()

    def slowly() -> Reader:
        ready.wait()
        return reader(source)

    monkeypatch.setattr(disks, "OPEN_PATIENCE", 0.01)
    with pytest.raises(UnavailableError, match="still being opened"):
        opened.acquire("web01", slowly)
    opened.sweep(0)
    monkeypatch.undo()
    ready.set()
    again, _ = opened.acquire("web01", lambda: pytest.fail("opened twice"))
    assert again.source is source

    def refused() -> Reader:
        raise DeniedError("wrong password")

    with pytest.raises(DeniedError):
        opened.acquire("web02", refused)
    assert "web02" not in opened.names()


def test_copies_are_pinned_while_they_are_used_and_for_a_while(tmp_path: Path) -> None:
    write_secret(tmp_path / "password", "secret")
    repository = Repository.init(tmp_path / "repository", tmp_path / "password")
    copy = repository.backup(write_disk(tmp_path / "disk.raw"), "web01")
    state = tmp_path / "state"
    state.mkdir()
    pinned = Pinned(state)
    pinned.pin(copy.source)
    pinned.pin(copy.source)
    (pin,) = repository.pins.all()[copy.id]
    assert pin.reason.startswith("served by the media agent on ")
    with pytest.raises(NotFoundError):
        pinned.pin(copy.source.replace(copy.id, "0" * 64))
    pinned.sweep({copy.source}, keep=0)
    pinned.sweep(set(), keep=3600)
    assert copy.id in repository.pins.all()

    after_a_kill = Pinned(state)
    after_a_kill.sweep(set(), keep=3600)
    assert copy.id in repository.pins.all()
    after_a_kill.sweep(set(), keep=0)
    assert repository.pins.all() == {}
    Pinned(state).sweep(set(), keep=0)

    (state / "pinned.json").write_text("[rubbish")
    with pytest.raises(CorruptError):
        Pinned(state)
