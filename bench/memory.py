"""Memory: the proportional share (PSS) of every process that idle mounts need, as mounts grow 1, 5, 20.

All mounts are of one copy in a restic repository; each is exported and was read a little, as an idle guest has done.
They are idle for some seconds then: a worker keeps the memory that recalls need until nothing is recalled for 5 s.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from bench.harness import Figure, figure
from bench.hits import MIB
from bench.processes import memory
from bench.repository import make_copies
from bench.rig import Options, open_rig, wait_for

COUNTS = (1, 5, 20)
LIMIT = 20.0
"""MiB a mount may cost."""
TOUCHED = 8 * MIB
IDLE = 12.0
"""Seconds without I/O before a measurement."""


def measure(options: Options) -> Iterator[Figure]:
    """Mounts are added until there are as many as wanted; a round begins with none."""
    values: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(options.rounds):
        with open_rig(options.directory) as rig:
            copies = make_copies(rig, 2 * TOUCHED, borg=False)
            rig.start_target()
            rig.start_driver()
            before = memory(rig)
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
                time.sleep(IDLE)
                values[count].append((memory(rig) - before) / count)
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
