"""Looks at all mounts, one after the other, and what happened between two of them.

A live-mount host that does not answer is a part of the look, not its end.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from livemount.core.errors import LivemountError
from livemount.core.machine import Frozen
from livemount.driver.api import Latency, PseudoDiskStats
from livemount.host.api import PseudoDisk
from livemount.manager.client import Manager
from livemount.manager.environment import Environment
from livemount.workflow.states import MountRecord

HOST_PATIENCE = 5.0
"""Seconds that a look waits for the host."""


class Percentiles(Frozen):
    """How long requests took, in seconds, to the next power of two microseconds; 0 without any."""

    p50: float
    p99: float


class Rates(Frozen):
    """What a disk did between two looks."""

    seconds: float
    """Between the looks."""
    recalled_bytes_per_second: float
    reads_per_second: float
    writes_per_second: float
    read_latency: Percentiles
    write_latency: Percentiles


class MountLook(Frozen):
    """One mount at the time of a look."""

    record: MountRecord
    disk: PseudoDisk | None
    """`None` when it has none (yet, or any more), or the host does not answer."""
    rates: Rates | None
    """`None` before the second look at its disk."""


class Look(Frozen):
    """All mounts at one time."""

    time: datetime
    mounts: list[MountLook]
    problem: str | None
    """Why nothing is known of the disks."""


def _between(before: Latency, now: Latency) -> Percentiles | None:
    earlier = before.buckets + (0,) * (len(now.buckets) - len(before.buckets))
    counts = tuple(count - known for count, known in zip(now.buckets, earlier, strict=True))
    if min(counts, default=0) < 0:
        return None
    latency = Latency(buckets=counts)
    return Percentiles(p50=latency.quantile(0.5), p99=latency.quantile(0.99))


def rates(before: PseudoDiskStats, now: PseudoDiskStats, seconds: float) -> Rates | None:
    """What happened in `seconds` between two looks; `None` when counters went back, as those of a new disk do."""
    deltas = [getattr(now, name) - getattr(before, name) for name in ("recalled_bytes", "reads", "writes")]
    reads = _between(before.read_latency, now.read_latency)
    writes = _between(before.write_latency, now.write_latency)
    if min(deltas) < 0 or seconds <= 0 or reads is None or writes is None:
        return None
    recalled, read, written = (delta / seconds for delta in deltas)
    return Rates(
        seconds=seconds,
        recalled_bytes_per_second=recalled,
        reads_per_second=read,
        writes_per_second=written,
        read_latency=reads,
        write_latency=writes,
    )


class Watcher:
    """Remembers the last look at each disk."""

    def __init__(self, manager: Manager, environment: Environment, *, ended: bool) -> None:
        """`ended`: those mounts that are over as well."""
        self._manager = manager
        self._environment = environment
        self._ended = ended
        self._last: dict[str, tuple[float, PseudoDiskStats]] = {}

    def look(self) -> Look:
        """The mounts as they are now."""
        records = self._manager.records(ended=self._ended)
        disks: dict[str, PseudoDisk] = {}
        problem = None
        try:
            if any(not record.state.final for record in records):
                disks = self._environment.disks(HOST_PATIENCE)
        except LivemountError as error:
            problem = str(error)
        now = time.monotonic()
        looks = [self._mount(record, disks.get(record.order.mount), now) for record in records]
        # While the host is away, the last look at each disk stays the one to compare with.
        if problem is None:
            self._last = {mount: (now, disk.stats) for mount, disk in disks.items()}
        return Look(time=datetime.now(UTC), mounts=looks, problem=problem)

    def _mount(self, record: MountRecord, disk: PseudoDisk | None, now: float) -> MountLook:
        last = self._last.get(record.order.mount)
        known = rates(last[1], disk.stats, now - last[0]) if last and disk else None
        return MountLook(record=record, disk=disk, rates=known)
