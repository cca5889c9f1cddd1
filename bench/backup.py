"""Backups: first, unchanged, 2 % changed; restore; random reads; repository's size; memory of a large index.

The same image goes into a repository of ours, of restic's and of borg's, in turns, each as its first copy and then as
the next ones. What a copy is compared by is its wall time with the image in the page cache, with compression and
encryption as each program has them by default. kopia is not among them yet.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.cold import borg_mount, restic_mount
from bench.harness import Figure, figure, interleave
from bench.hits import MIB
from bench.repository import ARCHIVE, Copies
from bench.rig import Options, Rig, need, open_rig
from livemount.core.run import run
from livemount.core.secrets import new_secret
from livemount.media.disks import Changes, DiskInput
from livemount.media.registry import open_source
from livemount.media.repository import Made, Repository, Wanted

NAME = "bench"
SIZE = 1024 * MIB
IN_USE = 0.4
"""Part of the image that is not holes: a third of it random, the rest as compressible as text."""
CHANGED = 0.02
BLOCK = 64 << 10
READS = 200
READERS = 8
PAGE = 4096


@dataclass
class Values:
    """What a round measured of one program. Seconds, bytes."""

    first: float
    unchanged: float
    changed: float
    restore: float
    latency: float
    parallel: float
    size: float
    listed: float | None = None
    """2 % changed, by a list of changes."""


def make_image(path: Path) -> None:
    """Runs of data and holes, 4 MiB each, as a file system leaves them."""
    chance = random.Random(1)  # noqa: S311 (nothing secret)
    with path.open("wb") as file:
        file.truncate(SIZE)
        for offset in range(0, SIZE, 4 * MIB):
            if chance.random() < IN_USE:
                words = b" ".join(b"%d" % chance.randrange(1 << 20) for _ in range(1 << 16))
                noise = chance.randbytes(4 * MIB // 3)
                file.seek(offset)
                file.write((noise + words * 10)[: 4 * MIB])


def change(path: Path, seed: int) -> tuple[tuple[int, int], ...]:
    """Write 2 % of the image anew in runs of 1 MiB, and say where."""
    chance = random.Random(seed)  # noqa: S311
    places = sorted(chance.sample(range(SIZE // MIB), max(1, int(SIZE // MIB * CHANGED))))
    with path.open("r+b") as file:
        for place in places:
            file.seek(place * MIB)
            file.write(chance.randbytes(MIB))
    return tuple((place * MIB, MIB) for place in places)


def took(work: Callable[[], object]) -> float:
    """Seconds of some work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def size_of(folder: Path) -> float:
    """Bytes of the files of a folder."""
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


def random_reads(read: Callable[[int], bytes], readers: int) -> float:
    """Median seconds of a read of one reader, or bytes a second of several."""
    chance = random.Random(3)  # noqa: S311
    places = [chance.randrange(SIZE // BLOCK) * BLOCK for _ in range(READS)]
    if readers == 1:
        return sorted(took(lambda place=place: read(place)) for place in places)[READS // 2]  # type: ignore[misc]
    with ThreadPoolExecutor(readers) as pool:
        seconds = took(lambda: list(pool.map(read, places)))
    return READS * BLOCK / seconds


class Programs:
    """The contestants, each with a new repository every round."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.image = rig.folder / "disk0.raw"
        self.password = rig.folder / "password"
        self.password.touch(mode=0o600)
        self.password.write_text(new_secret())
        self._seed = 0

    @contextlib.contextmanager
    def _round(self, name: str) -> Iterator[tuple[Path, Path]]:
        """A folder of repositories, and one of caches; the image as at the start."""
        self._seed += 1
        folder, cache = self._rig.folder / f"{name}-{self._seed}", self._rig.folder / f"{name}-cache-{self._seed}"
        folder.mkdir()
        cache.mkdir()
        make_image(self.image)
        try:
            yield folder, cache
        finally:
            shutil.rmtree(folder)
            shutil.rmtree(cache)

    def ours(self) -> Values:
        """Ours, in this process."""
        with self._round("ours") as (folder, _):
            repository = Repository.init(folder / "restic", self.password)
            made: list[Made] = []

            def backup(changes: Changes | None = None, *, read_all: bool = False) -> float:
                disk = DiskInput(self.image, changes=changes)
                return took(lambda: made.append(repository.make([disk], NAME, wanted=Wanted(read_all=read_all))))

            first = backup()
            size = size_of(folder)
            unchanged = backup(read_all=True)
            change(self.image, 1)
            changed = backup()
            ranges = change(self.image, 2)
            listed = backup(Changes(since=made[-1].copy.id, ranges=ranges))
            with contextlib.closing(open_source(made[-1].copy.source, self.password)) as source:
                latency = random_reads(lambda place: source.read(place, BLOCK), 1)
            with contextlib.closing(open_source(made[-1].copy.source, self.password)) as source:
                parallel = random_reads(lambda place: source.read(place, BLOCK), READERS)
            restore = took(lambda: repository.digest(made[-1].copy))
        return Values(first, unchanged, changed, restore, latency, parallel, size, listed)

    def _reads(
        self, mount: Callable[[Rig, Copies], contextlib.AbstractContextManager[Path]], copies: Copies
    ) -> list[float]:
        values = []
        for readers in (1, READERS):
            with mount(self._rig, copies) as file:
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                    values.append(random_reads(lambda place, of=descriptor: os.pread(of, BLOCK, place), readers))  # type: ignore[misc]
                finally:
                    os.close(descriptor)
        return values

    def restic(self) -> Values:
        """restic."""
        with self._round("restic") as (folder, cache):
            copies = Copies(folder, f"restic://{folder}/restic?snapshot=latest&file=/", self.password, cache)
            words = [*copies.restic]
            words.remove("--no-lock")

            def backup(*options: str) -> float:
                return took(lambda: run(*words, "backup", *options, self.image, timeout=600))

            run(*words, "init")
            first = backup()
            size = size_of(folder)
            unchanged = backup("--force")
            change(self.image, 1)
            changed = backup()
            snapshot = json.loads(run(*words, "snapshots", "--json").stdout)[-1]["id"]
            copies = Copies(
                folder, f"restic://{folder}/restic?snapshot={snapshot}&file={self.image}", self.password, cache
            )
            restore = took(lambda: run("sh", "-c", '"$@" >/dev/null', "sh", *words, "dump", "latest", self.image))
            latency, parallel = self._reads(restic_mount, copies)
        return Values(first, unchanged, changed, restore, latency, parallel, size)

    def borg(self) -> Values:
        """borg."""
        with self._round("borg") as (folder, cache):
            copies = Copies(folder, "restic:///none?snapshot=&file=/", self.password, cache)

            def backup(archive: str, *options: str) -> float:
                words = ["borg", "create", *options, f"{folder / 'borg'}::{archive}", self.image.name]
                return took(lambda: run(*words, env=copies.environment, cwd=self.image.parent, timeout=600))

            run("borg", "init", "--encryption", "repokey", folder / "borg", env=copies.environment)
            first = backup("first")
            size = size_of(folder)
            unchanged = backup("again", "--files-cache", "disabled")
            change(self.image, 1)
            changed = backup(ARCHIVE)
            words = ["borg", "extract", "--stdout", copies.borg_archive]
            restore = took(lambda: run("sh", "-c", '"$@" >/dev/null', "sh", *words, env=copies.environment))
            latency, parallel = self._reads(borg_mount, copies)
        return Values(first, unchanged, changed, restore, latency, parallel, size)


def compare(ours: list[Values], peers: list[Values], peer: str) -> Iterator[Figure]:
    """The figures of one peer."""
    table: list[tuple[str, str, str, str, bool, float | None]] = [
        ("first copy", "first", "first", "s", True, 2.0),
        ("unchanged, all read", "unchanged", "unchanged", "s", True, None),
        ("2 % changed, all read", "changed", "changed", "s", True, None),
        ("2 % changed, by a list", "listed", "changed", "s", True, 10.0),
        ("restore", "restore", "restore", "s", True, None),
        ("64k random read, latency", "latency", "latency", "s", True, 5.0),
        ("64k random reads, 8 readers", "parallel", "parallel", "B/s", False, None),
        ("repository size", "size", "size", "B", True, 1 / 1.03),
    ]
    for name, mine, theirs, unit, lower, goal in table:
        yield figure(
            f"backup/{name}/{peer}",
            [getattr(values, mine) for values in ours],
            [getattr(values, theirs) for values in peers],
            unit=unit,
            peer_name=peer,
            goal=goal,
            lower_is_better=lower,
        )


def measure(options: Options) -> Iterator[Figure]:
    """Every figure, against restic and borg."""
    need("restic", "borg")
    with open_rig(options.directory) as rig:
        programs = Programs(rig)
        values = interleave({"ours": programs.ours, "restic": programs.restic, "borg": programs.borg}, options.rounds)
        for peer in ("restic", "borg"):
            yield from compare(values["ours"], values[peer], peer)
