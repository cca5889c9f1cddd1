"""Mount latency: from the request to the boot script's first byte, split by what happens on the way.

Brings up an environment of its own (as `livemount environment up` does) with one copy of the demonstration's guest.
Each round mounts the copy, waits until its machine has been given the script, and ends the mount. The moments come from
the mount's record on the host, the host's events, the machine's socket (made when it is started) and the boot server's
access log, which is written when the script has been sent.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bench.harness import Figure, figure
from bench.rig import Options, open_folder, wait_for
from demo import leftovers
from demo.guest import build_guest
from livemount.boot.api import RequestKind
from livemount.boot.nginx import NginxBoot
from livemount.core.errors import ConflictError, UnavailableError
from livemount.core.machine import Copy, MachineDescription
from livemount.core.secrets import secret_file
from livemount.core.settings import EnvironmentPaths, HostPaths, Settings
from livemount.host.api import EventKind
from livemount.host.records import Records
from livemount.local_cloud.cloud import QemuCloud
from livemount.manager.client import Manager
from livemount.manager.environment import Environment, host_client
from livemount.media.repository import Repository
from livemount.workflow.states import MountOrder, MountState

GOAL = 10.0
"""Seconds from the request to the script's first byte."""
PATIENCE = 300.0
GUEST = "web01"
BEGUN = "workflow begins"
PULUMI_BEFORE = "Pulumi starts, interface"
PULUMI_AFTER = "Pulumi goes on, machine starts"
FETCHED = "machine start to script"
PARTS = (
    (EventKind.STORES_READY, "stores"),
    (EventKind.GUEST_PREPARED, "guest preparation"),
    (EventKind.TARGET_READY, "target"),
    (EventKind.SCRIPT_PUBLISHED, "boot script"),
)
"""What the host tells of, in order."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_environment(directory: Path) -> Iterator[Settings]:
    """An environment below `directory`, taken away afterwards. Raises `ConflictError` when something of it is left."""
    with open_folder(directory) as home:
        settings = Settings(home=home, environment=f"b{os.getpid() % 1_000_000}")
        environment = Environment(settings)
        try:
            environment.up(log.info)
            yield settings
        finally:
            environment.down(log.info)
        left = {kind: names for kind, names in leftovers.of_environment(settings.paths()).items() if names}
        if left:
            raise ConflictError(f"the environment is down, but there is still {left}")


def make_copy(settings: Settings) -> Copy:
    """Back up the demonstration's guest."""
    image = build_guest(settings.cache / "guests", hostname=GUEST, cache=settings.cache)
    repository = Repository.init(settings.repository_path, secret_file(settings.repository_password))
    return repository.backup(image, GUEST, MachineDescription(memory_mib=768))


class Round:
    """One mount, from its request to its end."""

    def __init__(self, settings: Settings, manager: Manager, copy: Copy) -> None:
        self._paths: EnvironmentPaths = settings.paths()
        self._outputs = Environment(settings).outputs()
        self._manager = manager
        self._mount = f"bench-{secrets.token_hex(3)}"
        self._order = MountOrder(
            mount=self._mount,
            copy=copy,
            password_file=settings.repository_password,
            expires=datetime.now(UTC) + timedelta(minutes=15),
        )

    def run(self) -> dict[str, float]:
        """Seconds of each part, in order."""
        began = datetime.now(UTC)
        self._manager.request(self._order)
        try:
            fetched = self._wait_for_script()
            moments = [*self._moments(), (FETCHED, fetched)]
        finally:
            self._end()
        seconds = {}
        for name, moment in moments:
            seconds[name] = max(1e-6, (moment - began).total_seconds())
            began = moment
        return seconds

    def _wait_for_script(self) -> datetime:
        """When the script was sent."""
        host = HostPaths(self._paths.host)
        records, boot = Records(host.mounts, host.recall), NginxBoot(host)
        looked = time.monotonic()

        def fetched() -> bool:
            nonlocal looked
            if time.monotonic() - looked > 1:
                looked = time.monotonic()
                self._check()
            record = records.read(self._mount)
            if record is None:
                return False
            asked = boot.requests(record.request.address, record.created)
            return any(request.kind is RequestKind.SCRIPT and request.status == 200 for request in asked)

        wait_for(fetched, f"the machine of {self._mount} has been given its script", PATIENCE)
        # nginx notes whole seconds; the log was just written.
        return datetime.fromtimestamp(host.access_log.stat().st_mtime, UTC)

    def _check(self) -> None:
        record = self._manager.find(self._mount)
        if record is not None and record.state in (MountState.ENDING, MountState.ENDED, MountState.FAILED):
            raise UnavailableError(f"the mount {self._mount} did not come up: {record.error or record.reason}")

    def _moments(self) -> Iterator[tuple[str, datetime]]:
        host = HostPaths(self._paths.host)
        history = self._manager.record(self._mount).history
        yield BEGUN, next(step.time for step in history if step.state is MountState.PREPARING)
        record = Records(host.mounts, host.recall).read(self._mount)
        machine = QemuCloud(self._paths.cloud).read_machine(self._mount)
        if record is None or machine is None:
            raise UnavailableError(f"the mount {self._mount} is gone already")
        yield PULUMI_BEFORE, record.created
        with host_client(self._outputs) as client:
            times = {event.kind: event.time for event in client.events(self._mount).events}
        for kind, name in PARTS:
            yield name, times[kind]
        yield PULUMI_AFTER, datetime.fromtimestamp(machine.control_socket.stat().st_mtime, UTC)

    def _end(self) -> None:
        self._manager.stop(self._mount, "the bench has what it wants")
        for record in self._manager.watch(self._mount):
            if record.state is MountState.FAILED:
                raise UnavailableError(f"the mount {self._mount} could not be ended: {record.reason}")


def compare(rounds: list[dict[str, float]]) -> Iterator[Figure]:
    """The whole against the goal, and each part against the whole."""
    wholes = [sum(parts.values()) for parts in rounds]
    yield figure(
        "latency/request to script",
        wholes,
        [GOAL] * len(wholes),
        unit="s",
        peer_name="the limit set",
        goal=1.0,
        lower_is_better=True,
    )
    for name in rounds[0]:
        parts = [each[name] for each in rounds]
        yield figure(f"latency/{name}", parts, wholes, unit="s", peer_name="the whole", lower_is_better=True)


def measure(options: Options) -> Iterator[Figure]:
    """Mounts, one after the other."""
    rounds = []
    with open_environment(options.directory) as settings:
        copy = make_copy(settings)
        manager = Manager(settings.paths())
        try:
            for number in range(options.rounds):
                rounds.append(Round(settings, manager, copy).run())
                log.info("round %d of %d: %s", number + 1, options.rounds, rounds[-1])
        finally:
            manager.close()
    yield from compare(rounds)
