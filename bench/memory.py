"""Memory: the proportional share (PSS) of every process that idle mounts need, as mounts grow 1, 5, 20.

All mounts are of one copy in a restic repository; each is exported and was read a little, as an idle guest has done.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bench.harness import Figure, figure
from bench.hits import MIB
from bench.repository import make_copies
from bench.rig import Options, Rig, open_rig, wait_for

COUNTS = (1, 5, 20)
LIMIT = 20.0
"""MiB a mount may cost."""
TOUCHED = 8 * MIB


def pss(pid: int) -> float:
    """MiB of a process, shared pages divided among those that share them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def _processes(rig: Rig) -> set[int]:
    """The rig's own children, and whoever has a file of the rig open (the workers)."""
    found = {process.pid for process in rig.processes}
    inside = f"{rig.folder}/"
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(os.path.realpath(link).startswith(inside) for link in (folder / "fd").iterdir()):
                found.add(int(folder.name))
    return found


def _total(rig: Rig) -> float:
    return sum(pss(pid) for pid in _processes(rig))


def measure(options: Options) -> Iterator[Figure]:
    """Mounts are added until there are as many as wanted; a round begins with none."""
    values: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(options.rounds):
        with open_rig(options.directory) as rig:
            copies = make_copies(rig, 2 * TOUCHED, borg=False)
            rig.start_target()
            rig.start_driver()
            before = _total(rig)
            present = 0
            for count in COUNTS:
                for number in range(present, count):
                    disk = rig.attach(f"memory-{number}", copies.source, copies.password_file)
                    rig.export(disk)
                    with disk.open("rb", buffering=0) as file:
                        for at in range(0, TOUCHED, MIB):
                            os.pread(file.fileno(), MIB, at)
                present = count
                wait_for(lambda: len(rig.driver.states()) == present, "all disks are up")  # noqa: B023 (called at once)
                values[count].append((_total(rig) - before) / count)
    for count, costs in values.items():
        yield figure(
            f"memory/{count} mounts, each",
            costs,
            [LIMIT] * len(costs),
            unit="MiB",
            peer_name="the limit set",
            goal=1.0,
            lower_is_better=True,
        )
