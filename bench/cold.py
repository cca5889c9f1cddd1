"""Cold recall: reads of a disk of which nothing is here yet, against what else reads a copy.

All read the same image: ours, `restic mount`, `restic dump`, nbdkit (cow, cache) with nbdfuse over `restic mount`, and
a serial reader of our own source from one restic repository; `borg mount` and `borg extract` from borg's. Latency is
added to every read of the repository (`bench.delayed`); the repository's files themselves are in the page cache. Every
contestant starts anew each round; starting it is not measured. A round of a slow one ends after `--seconds`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.harness import Figure, figure, interleave
from bench.hits import KIB, MIB
from bench.repository import Copies, delay, make_copies
from bench.rig import Options, Rig, need, open_rig, wait_for
from livemount.core.run import run
from livemount.media.registry import open_source

SIZE = 192 * MIB
LATENCIES_MS = (0, 2, 100)
CHUNK = 512 * KIB
"""Of our copies. Each random read is of another chunk, so that none is served by an earlier one's recall."""
RANDOM_BLOCK = 64 * KIB
RANDOM_READS = 320
PeerFile = Callable[[Rig, Copies], AbstractContextManager[Path]]

_numbers = itertools.count()


@contextlib.contextmanager
def ours(rig: Rig, copies: Copies) -> Iterator[Path]:
    """A new pseudo-disk; no other has the copy attached, so its recall store is new too."""
    name = f"cold-{next(_numbers)}"
    yield rig.attach(name, copies.source, copies.password_file)
    rig.driver.destroy(name)


@contextlib.contextmanager
def _mounted(rig: Rig, name: str, words: list[str], copies: Copies, file: Callable[[Path], Path]) -> Iterator[Path]:
    point = rig.folder / f"{name}-{next(_numbers)}"
    point.mkdir()
    with (rig.folder / f"{name}.log").open("ab") as log:
        process = subprocess.Popen([*words, str(point)], stdout=log, stderr=log, env=copies.environment)
    try:
        wait_for(lambda: point.is_mount() and file(point).is_file(), f"{name} is mounted")
        yield file(point)
    finally:
        # Not asked to end: it would first answer all that is still waiting for it.
        process.kill()
        process.wait()
        run("umount", "--lazy", point, check=False)


def restic_mount(rig: Rig, copies: Copies) -> AbstractContextManager[Path]:
    """`restic mount`."""
    inside = f"ids/{copies.snapshot[:8]}{copies.image_file}"
    return _mounted(rig, "restic-mount", [*copies.restic, "mount"], copies, lambda point: point / inside)


def borg_mount(rig: Rig, copies: Copies, image: str = "disk0.raw") -> AbstractContextManager[Path]:
    """`borg mount`."""
    words = ["borg", "--bypass-lock", "mount", "--foreground", copies.borg_archive]
    return _mounted(rig, "borg-mount", words, copies, lambda point: point / image)


@contextlib.contextmanager
def nbd(rig: Rig, copies: Copies) -> Iterator[Path]:
    """What a user would compose: nbdkit with cow and cache, as a file by nbdfuse, over `restic mount`."""
    with restic_mount(rig, copies) as image:
        point = rig.folder / f"nbd-{next(_numbers)}"
        point.mkdir()
        words = ["nbdfuse", str(point), "[", "nbdkit", "--exit-with-parent", "--filter=cow", "--filter=cache"]
        process = rig.start("nbdfuse", *words, "file", str(image), "]")
        try:
            wait_for(lambda: (point / "nbd").is_file(), "nbdfuse is mounted")
            yield point / "nbd"
        finally:
            rig.stop(process, signal.SIGKILL)
            run("umount", "--lazy", point, check=False)


@dataclass(frozen=True)
class Reading:
    """How a disk is read: `readers` threads with blocks of `block` bytes."""

    name: str
    block: int
    at_random: bool = False
    readers: int = 1

    def offsets(self) -> list[int]:
        """The same places in the same order for everyone."""
        if not self.at_random:
            return list(range(0, SIZE, self.block))
        chance = random.Random(2)  # noqa: S311 (nothing secret)
        chunks = chance.sample(range(SIZE // CHUNK), RANDOM_READS)
        return [chunk * CHUNK + chance.randrange(0, CHUNK, self.block) for chunk in chunks]

    def rate(self, read: Callable[[int], bytes], seconds: float) -> float:
        """MiB a second of calling `read(offset)`; what is under way after `seconds` is the last.

        What has not come after twice that time does not count; such a `read` goes on until its file system is gone.
        """
        began = time.perf_counter()

        def one(offset: int) -> int:
            return len(read(offset)) if time.perf_counter() - began < seconds else 0

        pool = ThreadPoolExecutor(self.readers)
        finished, _ = wait([pool.submit(one, offset) for offset in self.offsets()], 2 * seconds)
        count = sum(each.result() for each in finished)
        elapsed = time.perf_counter() - began
        pool.shutdown(wait=False, cancel_futures=True)
        # One block at least, so that there is a ratio.
        return max(count, self.block) / MIB / elapsed


READINGS = (
    Reading("sequential 1M", MIB),
    Reading("random 64k, 1 reader", RANDOM_BLOCK, at_random=True),
    Reading("random 64k, 64 readers", RANDOM_BLOCK, at_random=True, readers=64),
)


def _close(descriptor: int) -> None:
    # A file of a file system that is gone closes with an error.
    with contextlib.suppress(OSError):
        os.close(descriptor)


def read_file(open_file: PeerFile, reading: Reading, rig: Rig, copies: Copies, seconds: float) -> float:
    """MiB a second of reading a contestant's file."""
    with contextlib.ExitStack() as after, open_file(rig, copies) as path:
        descriptor = os.open(path, os.O_RDONLY)
        # Closed when the file system is gone: closing waits for reads that were given up.
        after.callback(_close, descriptor)
        if reading.at_random:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return reading.rate(lambda offset: os.pread(descriptor, reading.block, offset), seconds)


def serial(reading: Reading, copies: Copies, seconds: float) -> float:
    """MiB a second of reading our own source one block after the other: no store, no read-ahead, no parallelism."""
    source = open_source(copies.source, copies.password_file)
    try:
        return replace(reading, readers=1).rate(lambda offset: source.read(offset, reading.block), seconds)
    finally:
        source.close()


def restore(words: Callable[[Copies], list[str]], rig: Rig, copies: Copies, seconds: float) -> float:
    """MiB a second of a program that writes the image to its output, from its first byte on."""
    with (rig.folder / "restore.log").open("ab") as log:
        process = subprocess.Popen(words(copies), stdout=subprocess.PIPE, stderr=log, env=copies.environment, bufsize=0)
    assert process.stdout is not None  # noqa: S101 (for the type checker: it is a pipe)
    with process.stdout as output:
        count = len(output.read(1))
        began = time.perf_counter()
        while piece := output.read(MIB):
            count += len(piece)
            if time.perf_counter() - began > seconds:
                break
        rate = count / MIB / (time.perf_counter() - began)
    process.kill()
    process.wait()
    return rate


def restic_dump(copies: Copies) -> list[str]:
    """`restic dump`."""
    return [*copies.restic, "dump", copies.snapshot, copies.image_file]


def borg_extract(copies: Copies) -> list[str]:
    """`borg extract`."""
    return ["borg", "--bypass-lock", "extract", "--stdout", copies.borg_archive]


def measure(options: Options) -> Iterator[Figure]:
    """Every reading at every latency."""
    need("restic", "borg", "nbdkit", "nbdfuse")
    files: dict[str, PeerFile] = {
        "ours": ours,
        "restic mount": restic_mount,
        "borg mount": borg_mount,
        "nbdkit+nbdfuse": nbd,
    }
    restores = {"restic dump": restic_dump, "borg extract": borg_extract}
    with open_rig(options.directory) as rig:
        rig.start_driver()
        true = make_copies(rig, SIZE)
        for latency in LATENCIES_MS:
            copies = delay(rig, true, latency / 1000)
            for reading in READINGS:
                contestants: dict[str, Callable[[], float]] = {
                    name: partial(read_file, file, reading, rig, copies, options.seconds)
                    for name, file in files.items()
                }
                contestants["serial reader"] = partial(serial, reading, copies, options.seconds)
                if not reading.at_random:
                    for name, words in restores.items():
                        contestants[name] = partial(restore, words, rig, copies, options.seconds)
                values = interleave(contestants, options.rounds)
                for peer in (name for name in values if name != "ours"):
                    yield figure(
                        f"cold/{reading.name}/{latency} ms/{peer}",
                        values["ours"],
                        values[peer],
                        unit="MiB/s",
                        peer_name=peer,
                        goal=_goal(peer, latency),
                    )


def _goal(peer: str, latency: int) -> float | None:
    if "mount" in peer:
        return 5.0
    if peer == "serial reader":
        return 30.0 if latency == 100 else None
    return 0.9 if peer in ("restic dump", "borg extract") else None
