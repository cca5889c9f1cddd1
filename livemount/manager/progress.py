"""Follows a mount until its guest is up or it is over: the workflow's transitions and the host's events, together."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from livemount.core.errors import LivemountError, NotFoundError
from livemount.core.machine import Frozen
from livemount.core.settings import EnvironmentPaths
from livemount.manager.client import Manager
from livemount.manager.environment import host_client
from livemount.workflow.states import MountRecord, MountState


class Step(Frozen):
    """One thing that happened, for people."""

    time: datetime
    text: str


def follow(manager: Manager, paths: EnvironmentPaths, mount: str) -> Iterator[Step]:
    """What happens to a mount, as it happens; ends when the mount is running, ending or over."""
    host = host_client(paths)
    transitions = events = 0
    try:
        for record in manager.watch(mount):
            steps = _transitions(record, transitions)
            transitions = len(record.history)
            # Events end with the mount on its host: what was not seen by then is in the record's reason.
            try:
                new = host.events(mount, after=events)
            except NotFoundError:
                new = []
            except LivemountError as error:
                new = []
                steps.append(Step(time=record.history[-1].time, text=f"the live-mount host does not answer: {error}"))
            events += len(new)
            steps += [Step(time=event.time, text=event.text) for event in new]
            yield from sorted(steps, key=lambda step: step.time)
            if record.state.final or record.state is MountState.RUNNING:
                if record.state is MountState.RUNNING:
                    yield from _recalled(host.get(mount).stats.recalled_bytes, record)
                return
    finally:
        host.close()


def _transitions(record: MountRecord, seen: int) -> list[Step]:
    return [Step(time=t.time, text=f"{t.state}: {t.reason}") for t in record.history[seen:]]


def _recalled(count: int, record: MountRecord) -> Iterator[Step]:
    size = record.order.copy_.size
    yield Step(
        time=record.history[-1].time,
        text=f"recalled {count / 2**20:.1f} MiB of {size / 2**20:.0f} MiB ({count / size:.1%}) until now",
    )
