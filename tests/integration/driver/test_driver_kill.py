"""kill -9 of workers, of the supervisor, of both, under load and in between."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from livemount.core.errors import UnavailableError
from livemount.driver.api import PseudoDiskSpec
from tests.integration.driver.conftest import MIB, Host, make_source, wait_for

pytestmark = pytest.mark.integration


class Load:
    """Threads doing random I/O, each on ranges of its own, against a model."""

    THREADS = 4

    def __init__(self, path: Path, model: bytearray) -> None:
        self.model = model
        self.problems: list[str] = []
        self.operations = 0
        self._path = path
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "I/O hangs"

    def go_on(self) -> None:
        """Wait for some more operations."""
        goal = self.operations + 200
        wait_for(lambda: self.operations > goal or self.problems)

    def _run(self, number: int) -> None:
        chance = random.Random(number)
        part = len(self.model) // self.THREADS
        file = os.open(self._path, os.O_RDWR)
        try:
            while not self._stop.is_set():
                offset = number * part + chance.randrange(part - 70000)
                length = chance.choice([100, 512, 4096, 65536])
                match chance.randrange(8):
                    case 0:
                        os.fsync(file)
                    case 1 | 2 | 3:
                        data = chance.randbytes(length)
                        if os.pwrite(file, data, offset) != length:
                            self.problems.append("short write")
                        self.model[offset : offset + length] = data
                    case _:
                        os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)
                        if os.pread(file, length, offset) != self.model[offset : offset + length]:
                            self.problems.append(f"mismatch at {offset}")
                self.operations += 1
        except OSError as error:
            self.problems.append(str(error))
        finally:
            os.close(file)


def test_killed_workers_are_not_noticed(host: Host, tmp_path: Path) -> None:
    model = bytearray(make_source(tmp_path / "image"))
    state = host.client.attach(host.spec("m", tmp_path / "image"))
    with Load(state.path, model) as load:
        for _ in range(8):
            host.kill_worker("m")
            load.go_on()
    assert load.problems == []
    assert state.path.read_bytes() == model
    wait_for(lambda: host.client.state("m").stats.worker_restarts == 8)


def test_killed_supervisor_is_not_noticed(host: Host, tmp_path: Path) -> None:
    model = bytearray(make_source(tmp_path / "image"))
    state = host.client.attach(host.spec("m", tmp_path / "image"))
    with Load(state.path, model) as load:
        for _ in range(3):
            worker = host.worker("m")
            host.kill()
            load.go_on()
            host.start()
            assert host.worker("m") == worker
            # The new supervisor watches over the old worker.
            host.kill_worker("m")
            load.go_on()
    assert load.problems == []
    assert state.path.read_bytes() == model
    host.client.destroy("m")
    assert host.processes() == []


def test_both_killed_loses_nothing_that_was_flushed(host: Host, tmp_path: Path) -> None:
    model = bytearray(make_source(tmp_path / "image"))
    spec = host.spec("m", tmp_path / "image")
    state = host.client.attach(spec)
    chance = random.Random(3)
    for _ in range(3):
        file = os.open(state.path, os.O_RDWR)
        for _ in range(40):
            offset = chance.randrange(len(model) - 10000)
            data = chance.randbytes(chance.choice([10, 4096, 10000]))
            os.pwrite(file, data, offset)
            model[offset : offset + len(data)] = data
        os.fsync(file)
        host.kill()
        host.kill_worker("m")
        wait_for(lambda: not host.processes())
        # The connection is gone with both: what the page cache still takes is never flushed.
        with contextlib.suppress(OSError):
            os.pwrite(file, b"x", 0)
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.fsync(file)
        with contextlib.suppress(OSError):
            os.close(file)
        # The disk comes back at the same path.
        host.start()
        assert host.client.attach(spec).path.read_bytes() == model
        assert len(host.mounts()) == 1


def test_disk_comes_back_while_its_source_is_away(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    model = bytearray(make_source(image, 8 * MIB))
    state = host.client.attach(host.spec("m", image, hold_seconds=0))
    with state.path.open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), MIB, MIB) == model[MIB : 2 * MIB]
        image.rename(tmp_path / "away")
        host.kill_worker("m")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), MIB, MIB) == model[MIB : 2 * MIB]
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 4096, 3 * MIB)
        (tmp_path / "away").rename(image)
        assert os.pread(file.fileno(), 4096, 3 * MIB) == model[3 * MIB : 3 * MIB + 4096]


def test_changed_source_is_not_mixed_in(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_source(image, 8 * MIB)
    state = host.client.attach(host.spec("m", image))
    image.write_bytes(b"other" * 2048)
    host.kill_worker("m")
    with state.path.open("rb", buffering=0) as file, pytest.raises(OSError, match="Input/output error"):
        os.pread(file.fileno(), 4096, 3 * MIB)
    assert "is not what it was" in (host.paths.mounts / "m" / "private" / "worker.log").read_text()


def interrupted(call: Callable[[PseudoDiskSpec], object], spec: PseudoDiskSpec) -> None:
    """A call whose service may be killed meanwhile."""
    with contextlib.suppress(UnavailableError):
        call(spec)


def test_killed_in_the_middle_of_attach_and_destroy(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 4 * MIB)
    spec = host.spec("m", tmp_path / "image")
    chance = random.Random(5)
    calls: list[Callable[[PseudoDiskSpec], object]] = [host.client.attach, lambda spec: host.client.destroy(spec.id)]
    for call in calls * 4:
        thread = threading.Thread(target=interrupted, args=(call, spec))
        thread.start()
        time.sleep(chance.random() * 0.15)
        host.kill()
        thread.join()
        host.start()
        call(spec)
    host.client.attach(spec)
    assert (spec.directory / "disk" / "disk").read_bytes() == (tmp_path / "image").read_bytes()
    host.client.destroy("m")
    assert (host.mounts(), host.processes()) == ([], [])
    assert not spec.directory.exists()
