"""Scale: what one mount costs as mounts grow 1, 5, 20, each with a replayed boot, all at once.

Twenty emulated guests do not fit on a small machine, so a real guest boots once, from its prepared disk as a plain
file, and what it asks of tgtd is recorded. Then each mount has a session in which our initiator sends the same requests
to the real tgtd, one after the other, without the time in which the guest computes, and without its flushes. The
copies are of the prepared disk, so that every request meets the data it met.

Seconds: from the first login until the last boot is through, divided by the mounts. CPU: of driver, workers and tgtd,
from attach to the end. Memory: PSS of the same at the end, less what they need without a mount. All are compared with
the cost of a single mount. `one copy`: all share a recall store; `different copies`: each has its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.harness import Figure, figure, interleave
from bench.initiator import Initiator
from bench.place import FIRMWARE, GUEST, Place, copy_sparse, guest_image, open_place
from bench.processes import cpu, memory
from bench.recording import Request, parse, recording
from bench.rig import Options, Rig
from livemount.core.machine import MachineDescription
from livemount.core.secrets import secret_file
from livemount.media.repository import Repository

COUNTS = (1, 5, 20)
ONE, DIFFERENT = "one copy", "different copies"
PATIENCE = 300.0
UNUSED = 64 << 10
"""Where the guest's disk has nothing: between the partition table and the first partition."""


@dataclass(frozen=True)
class Cost:
    """What each of some mounts costs."""

    seconds: float
    cpu: float
    memory: float
    """MiB."""


UNITS = {"seconds": "s", "cpu": "s", "memory": "MiB"}


@dataclass(frozen=True)
class Copied:
    """Copies of the same prepared disk, each with some other bytes."""

    sources: list[str]
    password_file: Path


def record(place: Place, disk: Path) -> list[Request]:
    """Boot the guest of a prepared disk once; its requests."""
    to = place.rig.folder / "strace.out"
    with place.serving(disk, "one"), recording(place.rig, place.tgtd, to):
        place.boot("one")
    return parse(to.read_text())


def make_copies(place: Place, disk: Path, count: int) -> Copied:
    """Back a disk up again and again, with a change before each time."""
    folder = place.rig.folder
    password_file = secret_file(folder / "password")
    repository = Repository.init(folder / "restic", password_file)
    sources = []
    for _ in range(count):
        with disk.open("r+b") as file:
            os.pwrite(file.fileno(), os.urandom(4096), UNUSED)
        sources.append(repository.backup(disk, GUEST, MachineDescription(firmware=FIRMWARE)).source)
    return Copied(sources, password_file)


def replay(rig: Rig, initiator: Initiator, requests: Sequence[Request], sources: Sequence[str], key: Path) -> Cost:
    """Mount each source, replay a boot on all at once, take them away; the cost of each."""
    cpu_before, memory_before = cpu(rig), memory(rig)
    names = [f"scale-{number}" for number in range(len(sources))]
    urls = []
    try:
        for name, source in zip(names, sources, strict=True):
            urls.append(rig.export(rig.attach(name, source, key)))
        seconds = initiator.replay(urls, requests, PATIENCE)
        return Cost(
            seconds=seconds / len(sources),
            cpu=(cpu(rig) - cpu_before) / len(sources),
            memory=(memory(rig) - memory_before) / len(sources),
        )
    finally:
        for url in urls:
            rig.withdraw(url)
        for name in names:
            rig.driver.destroy(name)


def compare(kind: str, costs: Mapping[int, Sequence[Cost]]) -> Iterator[Figure]:
    """Each number of mounts against one."""
    for count in (count for count in costs if count != 1):
        for name, unit in UNITS.items():
            yield figure(
                f"scale/replayed boot, {kind}, {count} mounts, {name} each",
                [getattr(cost, name) for cost in costs[count]],
                [getattr(cost, name) for cost in costs[1]],
                unit=unit,
                peer_name="a single mount",
                lower_is_better=True,
            )


def measure(options: Options) -> Iterator[Figure]:
    """Record a boot, then replay it."""
    with open_place(options.directory) as place:
        rig, initiator = place.rig, Initiator(place.rig)
        disk = copy_sparse(guest_image(), rig.folder / "disk0.raw")
        place.prepare(disk)
        copied = make_copies(place, disk, max(COUNTS))
        requests = record(place, disk)
        disk.unlink()
        contestants: dict[str, Callable[[], Cost]] = {}
        for count in COUNTS:
            for kind, sources in ((ONE, copied.sources[:1] * count), (DIFFERENT, copied.sources[:count])):
                contestants[f"{kind}, {count}"] = partial(
                    replay, rig, initiator, requests, sources, copied.password_file
                )
        values = interleave(contestants, options.rounds)
    for kind in (ONE, DIFFERENT):
        yield from compare(kind, {count: values[f"{kind}, {count}"] for count in COUNTS})
