"""Follows a mount until its guest is up or it is over: the workflow's transitions and the host's events, together."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from infra.api import EnvironmentOutputs
from livemount.core.errors import UnavailableError
from livemount.core.machine import Frozen
from livemount.host.api import PseudoDisk
from livemount.manager.client import Manager
from livemount.manager.environment import host_client
from livemount.workflow.states import MountState


class Step(Frozen):
    """One thing that happened, for people."""

    time: datetime
    text: str


def follow(manager: Manager, environment: EnvironmentOutputs, mount: str) -> Iterator[Step]:
    """What happens to a mount, as it happens; ends when the mount is running, ending or over."""
    transitions = events = 0
    first = ""
    with host_client(environment) as host:
        for record in manager.watch(mount):
            steps = [Step(time=t.time, text=f"{t.state}: {t.reason}") for t in record.history[transitions:]]
            transitions = len(record.history)
            if transitions == 1 and first not in ("", record.reason):  # its place in the queue
                steps = [Step(time=datetime.now(UTC), text=f"{record.state}: {record.reason}")]
            first = record.history[0].reason
            try:
                new = host.events(mount, after=events).events
            except UnavailableError as error:
                new = []
                steps.append(Step(time=datetime.now(UTC), text=str(error)))
            events += len(new)
            steps += [Step(time=event.time, text=event.text) for event in new]
            yield from sorted(steps, key=lambda step: step.time)
            if record.state is MountState.RUNNING:
                yield _recalled(host.get_pseudo_disk(mount))
                return
            if record.state.final:
                return


def _recalled(disk: PseudoDisk) -> Step:
    count = disk.stats.recalled_bytes
    text = f"recalled {count / 2**20:.1f} MiB of {disk.size / 2**20:.0f} MiB ({count / disk.size:.1%}) until now"
    return Step(time=datetime.now(UTC), text=text)
