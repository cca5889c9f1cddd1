"""A thousand faults through the real mount and services: no byte is ever wrong, nothing acknowledged is lost."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from livemount.core.errors import NoSpaceError
from livemount.core.run import run
from livemount.driver.api import PseudoDiskSpec
from tests.integration.driver.conftest import MIB, Host, make_source, wait_for
from tests.integration.driver.test_driver_mount import PUNCH_HOLE_KEEP_SIZE, ZERO_RANGE, allocate
from tests.support.fault_model import SECTOR, ZERO, Model, pattern
from tests.support.mounted_fs import MountedFs

pytestmark = pytest.mark.integration

CHUNK = 65536
THREADS = 3
PART = 8 * MIB
"""Bytes of the disk that one thread uses. It writes to the first half: the rest goes on needing the source."""
RECALL_ROOM = 4 * MIB
"""Less than what the source holds."""
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.ENODEV)
"""What a mount says whose worker and supervisor were both killed."""


class Window:
    """A fault that lasts: whether it is on, and since when it was not."""

    def __init__(self) -> None:
        self._on = False
        self._ended = 0.0

    def set(self, on: bool) -> None:
        """Note it before it begins and after it ended."""
        if self._on and not on:
            self._ended = time.monotonic()
        self._on = on

    def was_on(self, since: float) -> bool:
        """Whether it was on at any time since then."""
        return self._on or self._ended >= since


class Faults:
    """What is the matter now."""

    def __init__(self, recall: Path) -> None:
        self._recall = recall
        self.away = Window()
        self.bad = Window()
        self.full = Window()
        self.recall_full = Window()
        self.crash = Window()
        self.bad_chunks: set[int] = set()
        """All that ever were: what is read from one of them may fail while `bad` is on."""
        self.pause = threading.Event()
        self.go_on = threading.Event()

    def recall_has_room(self) -> bool:
        """Whether all that is being recalled is kept. Each thread, and one more reader, may be reading 1 MiB."""
        status = os.statvfs(self._recall)
        return status.f_bavail * status.f_bsize > (THREADS + 1) * MIB // 2


class Load(threading.Thread):
    """Random I/O on a part of the disk, checked against the model; what is wrong goes to `problems`."""

    def __init__(self, number: int, path: Path, source: bytes, faults: Faults) -> None:
        super().__init__()
        self.number = number
        self.operations = 0
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self.resting = threading.Event()
        self.ending = threading.Event()
        self.model = Model(source)
        self._path = path
        self._faults = faults
        self._chance = random.Random(number)
        self._direct = number == THREADS - 1
        self._buffer = mmap.mmap(-1, MIB)
        self._value = 0
        self._synced = 0.0
        self._file = -1
        self._kept = {chunk for chunk in range(len(source) // CHUNK) if not any(source[chunk * CHUNK :][:CHUNK])}
        """Chunks that no read can fail for: holes, and what the recall store must have kept."""

    def run(self) -> None:
        """Until it is told to end."""
        try:
            while not self.ending.is_set() and not self.problems:
                if self._faults.pause.is_set():
                    self._rest()
                    self.resting.set()
                    self._faults.go_on.wait()
                    self.resting.clear()
                    continue
                self._step()
                self.operations += 1
            if not self.problems:
                self._sync()
        except Exception as error:
            self.problems.append(f"thread {self.number}: {error!r}")
        finally:
            self._close()

    def _rest(self) -> None:
        """Close the file without an fsync: who opens it later is not told what could not be written before."""
        if self._may_fail_late(self._synced):
            self.model.lost()
        self._close()

    def _close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def _open(self) -> int:
        while self._file < 0:
            try:
                self._file = os.open(self._path, os.O_RDWR | (os.O_DIRECT if self._direct else 0))
            except OSError as error:
                if error.errno not in GONE or not self._faults.crash.was_on(0):
                    raise
                time.sleep(0.01)
        return self._file

    def _step(self) -> None:
        chance = self._chance
        kind = chance.randrange(12)
        length = chance.choice([512, 1024, 4096, 5 * 512, 8192, CHUNK])
        extent = PART // 2 if kind < 7 else PART
        offset = self.number * PART + chance.randrange((extent - length) // SECTOR) * SECTOR
        sectors = range(offset // SECTOR, (offset + length) // SECTOR)
        file, started = self._open(), time.monotonic()
        try:
            match kind:
                case 0:
                    self._sync()
                case 1 | 2:
                    self._zero(file, offset, sectors)
                case 3 | 4 | 5 | 6:
                    self._write(file, offset, sectors)
                case _:
                    self._read(file, offset, sectors, started)
        except OSError as error:
            if error.errno in GONE and self._faults.crash.was_on(started):
                self.model.lost()
                self.counts["crash"] += 1
                self._close()
            else:
                raise

    def _sync(self) -> None:
        started = time.monotonic()
        try:
            os.fsync(self._open())
        except OSError as error:
            if error.errno in GONE:
                raise
            self.model.lost()
            self.counts["failed fsync"] += 1
            if not self._may_fail_late(self._synced):
                self.problems.append(f"thread {self.number}: fsync: {error}")
        else:
            self.model.synced()
            self.counts["fsync"] += 1
        self._synced = started

    def _may_fail_late(self, since: float) -> bool:
        """Whether something was the matter that can fail a write, and so an fsync after it."""
        return any(window.was_on(since) for window in (self._faults.full, self._faults.away, self._faults.bad))

    def _is_late(self, error: OSError, kind: str) -> bool:
        """Whether an error may be that of an earlier write. Direct I/O and zeroing write out what is in the page cache,
        and the kernel then reports what failed anywhere in the file.
        """
        late = error.errno in (errno.EIO, errno.ENOSPC) and self._may_fail_late(self._synced)
        return late and (self._direct or kind == "zero")

    def _changed(self, kind: str, change: Callable[[], int], sectors: range, value: int) -> None:
        started = time.monotonic()
        try:
            done = change() // SECTOR
        except OSError as error:
            self.model.wrote_perhaps(sectors, value)
            if error.errno in GONE:
                raise
            self.counts[f"failed {kind}"] += 1
            full = error.errno == errno.ENOSPC and self._faults.full.was_on(started)
            source = self._may_fail(error, self._edges(sectors), started)
            if not full and not source and not self._is_late(error, kind):
                self.problems.append(f"thread {self.number}: {kind} of {sectors}: {error}")
        else:
            self.model.wrote(sectors[:done], value)
            self.model.wrote_perhaps(sectors[done:], value)
            self.counts[kind] += 1

    def _write(self, file: int, offset: int, sectors: range) -> None:
        self._value += 1
        data = b"".join(pattern(self._value, sector) for sector in sectors)
        with memoryview(self._buffer)[: len(data)] as view:
            view[:] = data
            self._changed("write", lambda: os.pwritev(file, [view], offset), sectors, self._value)

    def _zero(self, file: int, offset: int, sectors: range) -> None:
        mode, length = self._chance.choice([PUNCH_HOLE_KEEP_SIZE, ZERO_RANGE]), len(sectors) * SECTOR

        def change() -> int:
            allocate(file, mode, offset, length)
            return length

        self._changed("zero", change, sectors, ZERO)

    def _read(self, file: int, offset: int, sectors: range, started: float) -> None:
        length = len(sectors) * SECTOR
        if not self._direct:
            # Pages of which a part is meant stay: so all of them.
            first = offset // 4096 * 4096
            os.posix_fadvise(file, first, -(-(offset + length - first) // 4096) * 4096, os.POSIX_FADV_DONTNEED)
        with memoryview(self._buffer)[:length] as view:
            try:
                data = bytes(view[: os.preadv(file, [view], offset)])
            except OSError as error:
                if error.errno in GONE:
                    raise
                self._failed_read(error, sectors, started)
                return
        # Where the rest fails, a read is short.
        sectors, rest = sectors[: len(data) // SECTOR], sectors[len(data) // SECTOR :]
        if rest:
            self._failed_read(OSError(errno.EIO, "short read"), rest, started)
        self.counts["read"] += 1
        problem = self.model.mismatch(sectors[0], data, doubtful=self._may_fail_late(self._synced))
        if problem is not None:
            self.problems.append(f"thread {self.number}: {problem}")
        if self._faults.recall_has_room() and not self._faults.recall_full.was_on(started):
            # A page that was changed may have come from the source long ago.
            blocks = {sector // 8 for sector in sectors}
            self._kept.update(block * 4096 // CHUNK for block in blocks if not self.model.was_ever_touched(block))

    def _failed_read(self, error: OSError, sectors: range, started: float) -> None:
        self.counts["failed read"] += 1
        if not self._may_fail(error, sectors, started) and not self._is_late(error, "read"):
            self.problems.append(f"thread {self.number}: read of {sectors}: {error}")

    def _edges(self, sectors: range) -> range | list[int]:
        """The sectors whose blocks are changed in part."""
        return [
            sector for sector in (sectors[0] // 8 * 8, sectors[-1] // 8 * 8) for sector in range(sector, sector + 8)
        ]

    def _may_fail(self, error: OSError, sectors: range | list[int], since: float) -> bool:
        """Whether an error may come from the source, of which something is needed that is not here."""
        doubtful = self._may_fail_late(self._synced)
        needed = {sector * SECTOR // CHUNK for sector in sectors if self.model.needs_source(sector, doubtful=doubtful)}
        needed -= self._kept
        bad = self._faults.bad.was_on(since) and bool(needed & self._faults.bad_chunks)
        source = bool(needed) and (self._faults.away.was_on(since) or bad)
        # A page whose read was under way in a mount that died is an I/O error, no missing connection.
        return error.errno == errno.EIO and (source or self._faults.crash.was_on(since))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Callable[[str, int], Path]]:
    """Makes file systems of so many bytes."""
    made: list[Path] = []

    def make(name: str, size: int) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
        made.append(folder)
        return folder

    yield make
    for folder in made:
        run("umount", "-l", folder)


def set_full(folder: Path, full: bool) -> None:
    """Take all the room of a file system, or give it back."""
    ballast = folder / "ballast"
    if not full:
        ballast.unlink(missing_ok=True)
        return
    with ballast.open("ab") as file:
        while room := os.statvfs(folder).f_bavail:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), file.tell(), room * 4096)
            file.seek(0, os.SEEK_END)


class Storm:
    """The faults, one method each."""

    def __init__(self, host: Host, source: MountedFs, spec: PseudoDiskSpec, loads: list[Load], faults: Faults) -> None:
        self._host = host
        self._source = source
        self._spec = spec
        self._loads = loads
        self._faults = faults
        self._chance = random.Random(11)
        self.counts: Counter[str] = Counter()

    def run(self, plan: list[str]) -> None:
        """All of them, with some I/O after each."""
        for number, name in enumerate(plan):
            getattr(self, name)()
            self.counts[name] += 1
            self._some_io(self._chance.randrange(1, 8))
            assert not self.problems(), f"{number} faults, the last ones {plan[max(0, number - 4) : number + 1]}"

    def _some_io(self, count: int) -> None:
        goals = [(load, load.operations + count) for load in self._loads]
        wait_for(lambda: any(load.operations >= goal for load, goal in goals) or self.problems(), 60)

    def problems(self) -> list[str]:
        """What is wrong."""
        return [problem for load in self._loads for problem in load.problems]

    def worker(self) -> None:
        """Killed; the supervisor replaces it."""
        self._host.kill_worker("m", self._spec.directory)

    def supervisor(self) -> None:
        """Killed, and started again after some I/O."""
        self._host.kill()
        self._some_io(5)
        self._host.start()

    def both(self) -> None:
        """The mount is dead with them, and made again."""
        self._faults.crash.set(True)
        self._host.kill()
        self._host.kill_worker("m", self._spec.directory)
        wait_for(lambda: not self._host.processes())
        self._host.start()
        self._host.client.attach(self._spec)
        self._faults.crash.set(False)

    def source_away(self) -> None:
        """Neither found nor read."""
        self._faults.away.set(True)
        self._source.order("gone")

    def source_back(self) -> None:
        """There again."""
        self._source.order("back")
        # A recall that failed before is told to who waits for it a little later.
        self._faults.away.set(False)

    def source_slow(self) -> None:
        """10 ms for each read."""
        self._source.order("delay", 0.01)

    def source_fast(self) -> None:
        """As ever."""
        self._source.order("delay", 0)

    def source_bad(self) -> None:
        """Some chunks cannot be read."""
        first = self._chance.randrange(THREADS * PART // CHUNK - 4)
        self._faults.bad_chunks.update(range(first, first + 4))
        self._faults.bad.set(True)
        self._source.order("bad", first * CHUNK, 4 * CHUNK)

    def source_good(self) -> None:
        """They can."""
        self._source.order("good")
        self._faults.bad.set(False)

    def private_full(self) -> None:
        """No room for a write."""
        self._faults.full.set(True)
        set_full(self._spec.directory.parent, True)

    def private_roomy(self) -> None:
        """Room again."""
        set_full(self._spec.directory.parent, False)
        self._faults.full.set(False)

    def recall_full(self) -> None:
        """Nothing that is recalled can be kept."""
        self._faults.recall_full.set(True)
        set_full(self._spec.recall_directory.parent, True)

    def recall_roomy(self) -> None:
        """It can."""
        set_full(self._spec.recall_directory.parent, False)
        self._faults.recall_full.set(False)

    def all_well(self) -> None:
        """End what lasts."""
        for end in (self.source_back, self.source_fast, self.source_good, self.private_roomy, self.recall_roomy):
            end()

    @contextlib.contextmanager
    def _nobody_uses_it(self) -> Iterator[None]:
        self._faults.go_on.clear()
        self._faults.pause.set()
        wait_for(lambda: all(load.resting.is_set() for load in self._loads) or self.problems(), 60)
        assert not self.problems()
        try:
            yield
        finally:
            self._faults.pause.clear()
            self._faults.go_on.set()

    def reattach(self) -> None:
        """Detached and attached, when all is well."""
        self.all_well()
        with self._nobody_uses_it():
            try:
                self._host.client.detach("m")
            except NoSpaceError:
                # An earlier write found none, and nobody was told yet.
                self._host.client.detach("m")
            self._host.client.attach(self._spec)

    def second_disk(self) -> None:
        """Another disk of the same copy: its blocks are the copy's, and the first one does not notice its end."""
        self.all_well()
        spec = self._spec.model_copy(update={"id": "n", "directory": self._host.paths.mounts / "n"})
        path = self._host.client.attach(spec).path
        copy = self._source.path / "image"
        at = self._chance.randrange(THREADS * PART // MIB) * MIB
        with path.open("r+b", buffering=0) as disk, copy.open("rb", buffering=0) as image:
            assert os.pread(disk.fileno(), MIB, at) == os.pread(image.fileno(), MIB, at)
            os.pwrite(disk.fileno(), b"n" * 4096, at)
        self._host.client.destroy("n")


LASTING = ("source_away", "source_back", "source_slow", "source_fast", "source_bad", "source_good")
ROOM = ("private_full", "private_roomy", "recall_full", "recall_roomy")
PLAN = {
    "worker": 53,
    "supervisor": 15,
    "both": 6,
    "reattach": 6,
    "second_disk": 6,
    **dict.fromkeys(LASTING, 91),
    **dict.fromkeys(ROOM, 92),
}
"""How many of each fault; in a random order."""


def test_a_thousand_faults_lose_nothing(host: Host, tmp_path: Path, small: Callable[[str, int], Path]) -> None:
    content = tmp_path / "content"
    content.mkdir()
    source = make_source(content / "image", THREADS * PART)
    private, recall = small("private", 48 * MIB), small("recall", RECALL_ROOM)
    with MountedFs("tests.support.faulty_fs", tmp_path / "source", content) as source_fs:
        spec = host.spec(
            "m", source_fs.path / "image", directory=private / "m", recall_directory=recall / "store", hold_seconds=0
        )
        path = host.client.attach(spec).path
        faults = Faults(recall)
        loads = [Load(number, path, source, faults) for number in range(THREADS)]
        storm = Storm(host, source_fs, spec, loads, faults)
        plan = [name for name, count in PLAN.items() for _ in range(count)]
        random.Random(12).shuffle(plan)
        assert len(plan) == 1000
        for load in loads:
            load.start()
        try:
            storm.run(plan)
            storm.all_well()
        finally:
            for load in loads:
                load.ending.set()
            faults.go_on.set()
            for load in loads:
                load.join(60)
        assert not storm.problems()
        assert storm.counts == PLAN
        for _ in range(2):
            with path.open("rb") as file:
                found = file.read()
            for load in loads:
                part = range(load.number * PART, (load.number + 1) * PART)
                assert load.model.mismatch(part[0] // SECTOR, found[part[0] : part[-1] + 1], doubtful=False) is None
            host.client.detach("m")
            host.client.attach(spec)
        counts = sum((load.counts for load in loads), Counter[str]())
        assert min(counts[kind] for kind in ("failed read", "failed write", "failed zero", "crash", "fsync")) > 0, (
            counts
        )
        host.client.destroy("m")
        assert (host.mounts(), host.processes()) == ([], [])
        assert not spec.directory.exists()
