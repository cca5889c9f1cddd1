"""What runs, compared with what was applied. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from livemount.core.machine import Frozen
from livemount.host.api import PseudoDisk
from livemount.workflow.states import EndCause, MountRecord, MountState


class Drift(Frozen):
    """One difference."""

    mount: str
    set: str
    problem: str
    applied: str
    """What was applied."""
    found: str
    repaired_by_apply: bool
    """Else it stays until its file changes."""


def of_set(records: Iterable[MountRecord], set_name: str | None) -> list[MountRecord]:
    """The mounts that files have made; those of one set, where it is named."""
    declared = ((record, record.order.declared) for record in records)
    return [record for record, by in declared if by is not None and set_name in (None, by.set)]


def drift(records: Iterable[MountRecord], disks: Mapping[str, PseudoDisk] | None, now: datetime) -> list[Drift]:
    """The differences. `records`: the newest of each name, made by files; `disks`: `None`: the host does not answer."""
    return [
        Drift(
            mount=record.order.mount,
            set=record.order.declared.set,
            problem=problem,
            applied=applied,
            found=found,
            repaired_by_apply=repaired,
        )
        for record in records
        if record.order.declared is not None
        for problem, applied, found, repaired in _differences(record, disks, now)
    ]


def _differences(
    record: MountRecord, disks: Mapping[str, PseudoDisk] | None, now: datetime
) -> Iterable[tuple[str, str, str, bool]]:
    order = record.order
    assert order.declared is not None  # noqa: S101
    lease = order.declared.expires
    until = f"until {lease.isoformat(timespec='seconds')}"
    if record.left:
        yield "something of it is left", "nothing" if lease <= now else until, record.error or record.reason, True
    elif record.state is MountState.FAILED and lease > now:
        yield "it failed", until, record.error or record.reason, True
    elif record.state is MountState.ENDED and lease > now and record.ended_by is EndCause.ASKED:
        ended = record.history[-1].time.isoformat(timespec="seconds")
        yield "it was ended by hand", until, f"ended at {ended}", True
    if record.state.final or record.state is MountState.ENDING:
        return
    if order.expires != lease:
        ends = f"until {order.expires.isoformat(timespec='seconds')}"
        yield "its expiry was changed by hand", until, ends, False
    if record.state in (MountState.BOOTING, MountState.RUNNING) and disks is not None:
        disk = disks.get(order.mount)
        if disk is None:
            yield "its pseudo-disk is gone", "a pseudo-disk", "none on the live-mount host", False
        elif not disk.healthy:
            yield "its pseudo-disk is not well", "a healthy pseudo-disk", "; ".join(disk.problems), False
        elif record.state is MountState.RUNNING and not disk.sessions:
            yield "its guest is not connected", "a guest that uses its disk", "no session of an initiator", False
