"""Backups: first copy, unchanged, 2 % changed, restore, random reads, size of the repository: ours, restic's, borg's.

Two images: `guest` (a Debian on ext4) and `mixed` (text, bytes by chance, holes). Each round every program gets a new
repository and makes the same copies, with compression and encryption as it has them by default; the image is in the
page cache. A backup's time is that of all that one needs: to open the repository by its password, to read, to store.
restic and borg are commands, and a command has to start; ours is called as our manager and policies do it, in a process
that runs. `list of copies by command` tells what starting our command costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.boot import restore
from bench.cold import borg_mount, restic_mount
from bench.harness import Figure, figure, interleave
from bench.hits import read_all
from bench.images import Change, blocks, data, guest, mixed
from bench.repository import ARCHIVE, Copies
from bench.rig import Options, Rig, need, open_rig
from livemount.core.run import run
from livemount.core.secrets import new_secret
from livemount.media.disks import Changes, DiskInput
from livemount.media.registry import open_source
from livemount.media.repository import Made, Repository, Wanted

NAME = "bench"
BLOCK = 64 << 10
READS = 200
READERS = 8
PATIENCE = 600.0
Read = Callable[[int], bytes]


@dataclass
class Values:
    """What a round measured of one program. Seconds, bytes, bytes a second."""

    start: float
    """A command that lists the copies, wholly."""
    first: float
    unchanged: float
    changed: float
    restore: float
    latency: float
    """Median of a read."""
    parallel: float
    size: float
    listed: float = 0.0
    """2 % changed, by a list of changes."""
    listed_open: float = 0.0
    """The same, of a repository that is open."""
    source: float = 0.0
    """Median of a read of our source, which no file system is in front of."""


def took(work: Callable[[], object]) -> float:
    """Seconds of some work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def size_of(folder: Path) -> float:
    """Bytes of the files of a folder."""
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()))


class Programs:
    """The contestants, with one image; each puts it back as it was."""

    def __init__(self, rig: Rig, image: Path) -> None:
        self._rig = rig
        self.image = image
        self.password = rig.folder / "password"
        if not self.password.exists():
            self.password.touch(mode=0o600)
            self.password.write_text(new_secret())
        self._number = 0
        # Of data only: to read a hole costs nobody anything. As many again for the parallel readers.
        chance = random.Random(3)  # noqa: S311 (nothing secret)
        self._places = chance.sample(blocks(data(image), BLOCK), 2 * READS)

    @contextlib.contextmanager
    def _round(self, name: str) -> Iterator[Path]:
        """A folder; the image is in the page cache, and after it as it was before."""
        self._number += 1
        folder = self._rig.folder / f"{self.image.stem}-{name}-{self._number}"
        (folder / "cache").mkdir(parents=True)
        read_all(self.image)
        try:
            yield folder
        finally:
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def _changed(self, seed: int) -> Iterator[Change]:
        change = Change.write(self.image, seed)
        try:
            yield change
        finally:
            change.undo(self.image)

    def _latency(self, read: Read) -> float:
        return sorted(took(partial(read, place)) for place in self._places[:READS])[READS // 2]

    def _parallel(self, read: Read) -> float:
        with ThreadPoolExecutor(READERS) as pool:
            return READS * BLOCK / took(lambda: list(pool.map(read, self._places[READS:])))

    def _reads(self, mount: Callable[[], contextlib.AbstractContextManager[Path]]) -> tuple[float, float]:
        """Latency and bytes a second of reads of a file; each of a new mount."""
        values = []
        for measured in (self._latency, self._parallel):
            with mount() as file:
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                    values.append(measured(partial(_read_at, descriptor)))
                finally:
                    os.close(descriptor)
        return values[0], values[1]

    def ours(self) -> Values:
        """Ours, in this process."""
        with self._round("ours") as folder:
            place = folder / "restic"
            Repository.init(place, self.password)
            made: list[Made] = []

            def backup(
                changes: Changes | None = None, *, every: bool = False, opened: Repository | None = None
            ) -> float:
                def work() -> None:
                    disk = DiskInput(self.image, changes=changes)
                    repository = opened or Repository.open(place, self.password)
                    made.append(repository.make([disk], NAME, wanted=Wanted(read_all=every)))

                return took(work)

            first = backup()
            size = size_of(place)
            unchanged = backup(every=True)
            with self._changed(1):
                changed = backup(every=True)
            with self._changed(2) as change:
                listed = backup(Changes(since=made[1].copy.id, ranges=change.ranges))
            with self._changed(3) as change:
                opened = Repository.open(place, self.password)
                listed_open = backup(Changes(since=made[1].copy.id, ranges=change.ranges), opened=opened)
            uri = made[-1].copy.source
            with contextlib.closing(open_source(uri, self.password)) as source:
                alone = self._latency(lambda offset: source.read(offset, BLOCK))
            latency, parallel = self._reads(lambda: self._attached(uri))

            def restored() -> None:
                with contextlib.closing(open_source(uri, self.password)) as source:
                    restore(source, folder / "restored.raw")

            begun = took(restored)
            environment = {
                **os.environ,
                "LIVEMOUNT_HOME": str(folder / "cache"),
                "LIVEMOUNT_REPOSITORY": str(place),
                "LIVEMOUNT_PASSWORD_FILE": str(self.password),
            }
            command = Path(sys.executable).with_name("livemount")
            start = took(lambda: run(command, "copies", "--output", "json", env=environment))
        return Values(start, first, unchanged, changed, begun, latency, parallel, size, listed, listed_open, alone)

    @contextlib.contextmanager
    def _attached(self, uri: str) -> Iterator[Path]:
        """The copy as a new pseudo-disk."""
        self._number += 1
        name = f"backup-{self._number}"
        yield self._rig.attach(name, uri, self.password)
        self._rig.driver.destroy(name)

    def restic(self) -> Values:
        """restic."""
        with self._round("restic") as folder:
            copies = Copies(folder, f"restic://{folder}/restic?snapshot=latest&file=/", self.password, folder / "cache")
            words = [word for word in copies.restic if word != "--no-lock"]

            def backup(*options: str) -> float:
                return took(lambda: run(*words, "backup", *options, self.image, timeout=PATIENCE))

            run(*words, "init")
            first = backup()
            size = size_of(folder / "restic")
            unchanged = backup("--force")
            with self._changed(1):
                changed = backup("--force")
            began = time.perf_counter()
            listing = run(*words, "snapshots", "--json").stdout
            start = time.perf_counter() - began
            uri = f"restic://{folder}/restic?snapshot={json.loads(listing)[-1]['id']}&file={self.image}"
            copies = Copies(folder, uri, self.password, folder / "cache")
            sparse = ["--sparse"] if "--sparse" in run("restic", "restore", "--help").stdout else []
            begun = took(
                lambda: run(*words, "restore", "latest", *sparse, "--target", folder / "restored", timeout=PATIENCE)
            )
            latency, parallel = self._reads(lambda: restic_mount(self._rig, copies))
        return Values(start, first, unchanged, changed, begun, latency, parallel, size)

    def borg(self) -> Values:
        """borg."""
        with self._round("borg") as folder:
            place = folder / "borg"
            copies = Copies(folder, "restic:///none?snapshot=&file=/", self.password, folder / "cache")
            environment = copies.environment

            def backup(archive: str) -> float:
                words = ["borg", "create", "--files-cache", "disabled", f"{place}::{archive}", self.image.name]
                return took(lambda: run(*words, env=environment, cwd=self.image.parent, timeout=PATIENCE))

            run("borg", "init", "--encryption", "repokey", place, env=environment)
            first = backup("first")
            size = size_of(place)
            unchanged = backup("again")
            with self._changed(1):
                changed = backup(ARCHIVE)
            start = took(lambda: run("borg", "list", place, env=environment))
            extract = ["borg", "extract", "--sparse", copies.borg_archive]
            begun = took(lambda: run(*extract, env=environment, cwd=folder / "cache", timeout=PATIENCE))
            latency, parallel = self._reads(lambda: borg_mount(self._rig, copies, self.image.name))
        return Values(start, first, unchanged, changed, begun, latency, parallel, size)


def _read_at(descriptor: int, offset: int) -> bytes:
    return os.pread(descriptor, BLOCK, offset)


TABLE: list[tuple[str, str, str, str, float | None]] = [
    ("first copy", "first", "first", "s", 2.0),
    ("unchanged, all read", "unchanged", "unchanged", "s", None),
    ("2 % changed, all read", "changed", "changed", "s", None),
    ("2 % changed, by a list", "listed", "changed", "s", 10.0),
    ("2 % changed, by a list, repository open", "listed_open", "changed", "s", 10.0),
    ("repository's size", "size", "size", "B", 1 / 1.03),
    ("restore to a sparse file", "restore", "restore", "s", None),
    ("64k random read, latency", "latency", "latency", "s", 5.0),
    ("64k random read, latency, source alone", "source", "latency", "s", None),
    ("64k random read, 8 readers", "parallel", "parallel", "B/s", None),
    ("list of copies by command", "start", "start", "s", None),
]
"""Of each figure its name, our value, theirs, the unit, the goal."""


def compare(image: str, ours: list[Values], peers: list[Values], peer: str) -> Iterator[Figure]:
    """The figures of one image and peer."""
    for name, mine, theirs, unit, goal in TABLE:
        yield figure(
            f"backup/{image}/{name}/{peer}",
            [getattr(values, mine) for values in ours],
            [getattr(values, theirs) for values in peers],
            unit=unit,
            peer_name=peer,
            goal=goal,
            lower_is_better=unit != "B/s",
        )


def measure(options: Options) -> Iterator[Figure]:
    """Every figure, of both images, against restic and borg."""
    need("restic", "borg")
    with open_rig(options.directory) as rig:
        rig.start_driver()
        for make, name in ((guest, "web01"), (mixed, "mixed")):
            image = make(rig.folder / f"{name}.raw")
            programs = Programs(rig, image)
            contestants = {"ours": programs.ours, "restic": programs.restic, "borg": programs.borg}
            values = interleave(contestants, options.rounds)
            for peer in ("restic", "borg"):
                yield from compare(make.__name__, values["ours"], values[peer], peer)
            image.unlink()
