"""Mount latency: from the request to the boot script's first byte, split by what happens on the way.

Needs an environment that is up and a copy: `LIVEMOUNT_HOME` and `LIVEMOUNT_ENVIRONMENT` name the environment as for
`livemount`, `LIVEMOUNT_BENCH_COPY` the copy (else the repository's newest). Each round mounts and ends the mount.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from bench.harness import Figure, figure
from bench.rig import Options
from infra.api import EnvironmentOutputs
from livemount.core.errors import NotFoundError, UnavailableError
from livemount.core.machine import Copy
from livemount.core.settings import Settings
from livemount.host.api import EventKind
from livemount.manager.client import Manager
from livemount.manager.environment import Environment, host_client
from livemount.media.repository import Repository
from livemount.workflow.states import MountOrder, MountState

GOAL = 10.0
"""Seconds from the request to the script's first byte."""
PATIENCE = 300.0
PARTS = (
    ("workflow begins", None),
    ("Pulumi and interface, then stores", EventKind.STORES_READY),
    ("guest preparation", EventKind.GUEST_PREPARED),
    ("target", EventKind.TARGET_READY),
    ("script published", EventKind.SCRIPT_PUBLISHED),
    ("machine asks for the script", EventKind.SCRIPT_FETCHED),
)


def _copy(settings: Settings) -> Copy:
    repository = Repository.open(settings.repository_path, settings.repository_password)
    wanted = os.environ.get("LIVEMOUNT_BENCH_COPY")
    if wanted:
        return repository.find(wanted)
    copies = repository.copies()
    if not copies:
        raise NotFoundError(f"{settings.repository_path} has no copy", hint="`livemount backup` makes one")
    return copies[-1]


def _order(settings: Settings, copy: Copy, mount: str) -> MountOrder:
    return MountOrder(
        mount=mount,
        copy=copy,
        password_file=settings.repository_password,
        expires=datetime.now(UTC) + timedelta(minutes=15),
    )


def _mount(manager: Manager, environment: EnvironmentOutputs, order: MountOrder) -> list[float]:
    """Seconds of each part of `PARTS` of one mount, which is ended again."""
    began = datetime.now(UTC)
    manager.request(order)
    moments: dict[EventKind | None, datetime] = {}
    last = PARTS[-1][1]
    try:
        with host_client(environment) as host:
            for record in manager.watch(order.mount):
                for step in record.history:
                    if step.state is MountState.PREPARING:
                        moments.setdefault(None, step.time)
                if record.state in (MountState.ENDING, MountState.ENDED, MountState.FAILED):
                    raise UnavailableError(f"the mount {order.mount} did not come up: {record.reason}")
                try:
                    events = host.events(order.mount).events
                except NotFoundError:
                    events = []
                for event in events:
                    moments.setdefault(event.kind, event.time)
                if last in moments:
                    break
                if (datetime.now(UTC) - began).total_seconds() > PATIENCE:
                    raise UnavailableError(f"{order.mount}: no machine asked for its script in {PATIENCE:.0f} s")
    finally:
        manager.stop(order.mount, "the bench has what it wants")
        for record in manager.watch(order.mount):
            if record.state is MountState.FAILED:
                raise UnavailableError(f"the mount {order.mount} could not be ended: {record.reason}")
    seconds, before = [], began
    for _, kind in PARTS:
        seconds.append(max(1e-6, (moments[kind] - before).total_seconds()))
        before = moments[kind]
    return seconds


def measure(options: Options) -> Iterator[Figure]:
    """The whole against the goal, and each part against the whole."""
    settings = Settings()
    environment = Environment(settings).outputs()
    copy = _copy(settings)
    manager = Manager(settings.paths())
    try:
        rounds = [
            _mount(manager, environment, _order(settings, copy, f"bench-{secrets.token_hex(3)}"))
            for _ in range(options.rounds)
        ]
    finally:
        manager.close()
    wholes = [sum(parts) for parts in rounds]
    yield figure(
        "latency/request to script",
        wholes,
        [GOAL] * len(wholes),
        unit="s",
        peer_name="the limit set",
        goal=1.0,
        lower_is_better=True,
    )
    for number, (name, _) in enumerate(PARTS):
        parts = [each[number] for each in rounds]
        yield figure(f"latency/{name}", parts, wholes, unit="s", peer_name="the whole", lower_is_better=True)
