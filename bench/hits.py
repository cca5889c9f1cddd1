"""Hits: the pseudo-disk behind tgt against tgt on a plain file, both on one file system, everything recalled before.

Two ways: `cached` (tgt reads and writes through the page cache, as a live mount does) and `direct` (tgt opens with
O_DIRECT, so that every I/O reaches the worker; the plain file's reach the disk). `direct to cached` compares our direct
way with a plain file that needs neither a worker nor the disk: what going through the worker costs.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.harness import Figure, figure, interleave
from bench.initiator import Initiator, Load
from bench.rig import Options, Rig, open_rig

KIB, MIB = 1 << 10, 1 << 20
SIZE = 256 * MIB
LOADS = [
    (Load("4k random read QD32", "randread", 4 * KIB, 32), 0.97, 0.85),
    (Load("4k random read QD1", "randread", 4 * KIB, 1), 0.97, 0.85),
    (Load("256k read QD4", "read", 256 * KIB, 4), 1.0, 1.0),
    (Load("256k write QD4", "write", 256 * KIB, 4), 1.0, 1.0),
    (Load("4k random write QD32", "randwrite", 4 * KIB, 32), 0.9, 0.9),
    (Load("4k random write QD32, flush per 64", "randwrite", 4 * KIB, 32, 64), 0.9, 0.9),
]
"""Each with its goals: cached, direct."""


def make_image(path: Path, size: int) -> None:
    """A file of random bytes, written to its disk: nothing in it compresses or is a hole."""
    chance = random.Random(1)  # noqa: S311 (content, not a secret)
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(chance.randbytes(MIB))
        os.fsync(file.fileno())


def read_all(path: Path) -> None:
    """Read a file once, so that all of it is recalled and in the page cache."""
    with path.open("rb", buffering=0) as file:
        while file.read(MIB):
            pass


def measure(options: Options) -> Iterator[Figure]:
    """Reads come first, while the private store is empty; then writes, of which later rounds overwrite earlier ones."""
    with open_rig(options.directory) as rig:
        plain, source = rig.folder / "plain.raw", rig.folder / "source.raw"
        for path in (plain, source):
            make_image(path, SIZE)
        rig.start_target()
        rig.start_driver()
        disk = rig.attach("hits", f"file://{source}")
        read_all(disk)
        read_all(plain)
        yield from _compare(rig, options, disk, plain)


def _compare(rig: Rig, options: Options, disk: Path, plain: Path) -> Iterator[Figure]:
    initiator = Initiator(rig)

    def rate(url: str, load: Load) -> float:
        return initiator.run(url, load, options.seconds).rate

    urls = {
        "ours, cached": rig.export(disk),
        "ours, direct": rig.export(disk, direct=True),
        "plain, cached": rig.export(plain),
        "plain, direct": rig.export(plain, direct=True),
    }
    for load, cached, direct in LOADS:
        contestants: dict[str, Callable[[], float]] = {name: partial(rate, url, load) for name, url in urls.items()}
        for warm in contestants.values():
            warm()
        values = interleave(contestants, options.rounds)
        for name, our_way, plain_way, goal in (
            ("cached", "cached", "cached", cached),
            ("direct", "direct", "direct", direct),
            ("direct to cached", "direct", "cached", None),
        ):
            yield figure(
                f"hits/{load.name}/{name}",
                values[f"ours, {our_way}"],
                values[f"plain, {plain_way}"],
                unit="IO/s",
                peer_name=f"tgt on a plain file, {plain_way}",
                goal=goal,
            )
