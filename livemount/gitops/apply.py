"""Brings an environment's mounts to what a set of files says.

Idempotent, and killed at any moment it is just applied again: every request carries what was applied, so the next plan
goes on from what was asked for. One at a time for an environment: a lock file.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from livemount.core.errors import ConflictError
from livemount.core.settings import EnvironmentPaths, Settings
from livemount.gitops.orders import FindCopy, order_of
from livemount.gitops.plan import Action, Step, plan
from livemount.gitops.spec import MountSpec
from livemount.manager.client import Manager
from livemount.workflow.states import EndCause, MountOrder, MountRecord, MountState


@dataclass(frozen=True)
class Plan:
    """What is to be done, and the orders that are needed for it."""

    set: str
    steps: list[Step]
    orders: Mapping[str, MountOrder]

    @property
    def changes(self) -> list[Step]:
        """The steps that change something."""
        return [step for step in self.steps if step.action is not Action.NOTHING]


def make_plan(
    settings: Settings, manager: Manager, specs: Sequence[MountSpec], set_name: str, find: FindCopy, *, prune: bool
) -> Plan:
    """Compare, and look for the copies and sources of what is to be mounted. Changes nothing.

    Raises `ConflictError` for names that others have, and what looking for a copy raises.
    """
    records = {record.order.mount: record for record in manager.records(ended=True)}
    steps = plan(specs, records, set_name, datetime.now(UTC), prune=prune)
    if conflicts := [step for step in steps if step.action is Action.CONFLICT]:
        raise ConflictError(
            "\n".join(f"{step.mount}: {step.reason}" for step in conflicts),
            hint="`livemount unmount` it first, or use another name in the file",
        )
    by_name = {spec.name: spec for spec in specs}
    orders = {
        step.mount: order_of(settings, by_name[step.mount], find, step.expires, step.declared)
        for step in steps
        if step.action in (Action.MOUNT, Action.REPLACE) and step.expires is not None
    }
    return Plan(set_name, steps, orders)


@contextmanager
def applying(paths: EnvironmentPaths) -> Iterator[None]:
    """Hold the lock of those who apply. Raises `ConflictError`."""
    with paths.apply_lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(
                "another `livemount apply` is at work in this environment", hint="wait for its end and try again"
            ) from error
        yield


def apply(manager: Manager, wanted: Plan, say: Callable[[str], None]) -> None:
    """Do what a plan says; returns when all is asked for, and what was to be replaced has ended."""
    # What ends makes room for what comes.
    for step in wanted.steps:
        if step.action in (Action.END, Action.REPLACE):
            manager.stop(step.mount, step.reason, step.cause or EndCause.ASKED)
            say(f"{step.mount}: told to end")
    for step in wanted.steps:
        if step.action is Action.CHANGE and step.expires is not None:
            manager.change(step.mount, step.expires, step.reason, step.declared)
            say(f"{step.mount}: told to end at {step.expires.isoformat(timespec='seconds')}")
        elif step.mount in wanted.orders:
            _wait_for_end(manager, step.mount, say)
            manager.request(wanted.orders[step.mount])
            say(f"{step.mount}: asked for")


def _wait_for_end(manager: Manager, mount: str, say: Callable[[str], None]) -> None:
    known = manager.find(mount)
    if known is None or (known.state.final and not known.left):
        return
    say(f"{mount}: waiting for its end")
    for known in manager.watch(mount):
        if known.state.final:
            break
    if known.left:
        raise ConflictError(f"the mount {mount} is not wholly gone: {known.error}", hint=known.hint)


def settle(manager: Manager, wanted: Plan) -> dict[str, MountRecord]:
    """Wait until all that was asked for is up, or over; what it has become."""
    done: dict[str, MountRecord] = {}
    for step in wanted.changes:
        for record in manager.watch(step.mount):
            done[step.mount] = record
            if step.action is not Action.END and record.state is MountState.RUNNING:
                break
    return done
