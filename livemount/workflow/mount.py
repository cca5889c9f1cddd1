"""One durable workflow a mount (DBOS): up, lease, destroy.

Crash contract: the workflow's steps are recorded in DBOS's database. A killed service begins the unfinished step
again when it is back: bringing a stack up and taking it down are both idempotent, so a mount goes on or is taken away,
once. Steps answer with data, never raise across the database: what they answer is plain JSON, so that a later version
of the software can go on with a mount that an earlier one began.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from dbos import DBOS

from livemount.core.errors import LivemountError
from livemount.workflow.states import MountOrder, MountRecord, MountState, Transition

log = logging.getLogger(__name__)

RECORD = "record"
"""The DBOS event under which a mount's record is published."""
CONTROL = "control"
"""The DBOS topic on which a mount is told to stop."""
LOOK_PERIOD = 2.0
"""Seconds between two looks at a booting guest."""


class Stacks(Protocol):
    """What the workflow needs of the mounts' stacks; every call is idempotent."""

    def up(self, order: MountOrder) -> dict[str, Any]:
        """Make the mount's stack and return its outputs."""

    def destroy(self, mount: str) -> None:
        """Take the mount's stack away; returns when nothing of it is left."""

    def is_up(self, order: MountOrder) -> bool:
        """Whether the guest has said that it is up."""

    def console_tail(self, outputs: dict[str, Any]) -> str:
        """The last lines of the guest's console (`outputs` are the stack's), or an empty text."""


_stacks: Stacks | None = None


def use(stacks: Stacks) -> None:
    """Name the stacks that this process's workflows work on (DBOS's functions take data only)."""
    global _stacks
    _stacks = stacks


def _get() -> Stacks:
    if _stacks is None:
        raise RuntimeError("livemount.workflow.mount.use() was not called")
    return _stacks


def _attempt(action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action of a step; its error becomes data."""
    try:
        return {"result": action()}
    except LivemountError as error:
        return {"error": error.message, "hint": error.hint}
    except Exception as error:
        log.exception("a step of a mount failed unexpectedly")
        return {"error": f"{type(error).__name__}: {error}", "hint": "this is a bug; the manager's log has the details"}


@DBOS.step()
def _now() -> str:
    return datetime.now(UTC).isoformat()


@DBOS.step()
def _up(order: dict[str, Any]) -> dict[str, Any]:
    return _attempt(lambda: _get().up(MountOrder.model_validate(order)))


@DBOS.step()
def _is_up(order: dict[str, Any]) -> dict[str, Any]:
    return _attempt(lambda: _get().is_up(MountOrder.model_validate(order)))


@DBOS.step()
def _console_tail(outputs: dict[str, Any]) -> str:
    return str(_attempt(lambda: _get().console_tail(outputs)).get("result", ""))


@DBOS.step(retries_allowed=True, max_attempts=5, interval_seconds=2.0, backoff_rate=2.0)
def _destroy(mount: str) -> None:
    _get().destroy(mount)


def dump(model: MountOrder | MountRecord) -> dict[str, Any]:
    """A record as plain JSON, for DBOS's database."""
    return model.model_dump(mode="json", by_alias=True)


class _Life:
    """The mount's record within its workflow: every change is published for clients."""

    def __init__(self, record: MountRecord) -> None:
        self.record = record
        DBOS.set_event(RECORD, dump(record))

    def move(self, state: MountState, reason: str, **changes: Any) -> None:
        self.record = self.record.moved(state, datetime.fromisoformat(_now()), reason, **changes)
        log.info("mount %s: %s (%s)", self.record.order.mount, state, reason)
        DBOS.set_event(RECORD, dump(self.record))


@DBOS.workflow(name="mount")
def mount_workflow(data: dict[str, Any]) -> None:
    """A mount from its order to its end."""
    order = MountOrder.model_validate(data)
    now = datetime.fromisoformat(_now())
    life = _Life(
        MountRecord(order=order, history=[Transition(state=MountState.REQUESTED, time=now, reason="asked for")])
    )
    life.move(MountState.PREPARING, "making interface, pseudo-disk and virtual machine")
    made = _up(dump(order))
    if "error" in made:
        _end(life, "could not be made", made)
        return
    life.move(MountState.BOOTING, "the virtual machine runs", outputs=made["result"])
    stopped = _wait_for_guest(life)
    if stopped is None:
        life.move(MountState.RUNNING, "the guest is up")
        stopped = _wait_for_end(life)
    _end(life, stopped["reason"], stopped)


def _left(order: MountOrder) -> float:
    """Seconds until the mount's expiry, 0 when it is over."""
    return max(0.0, (order.expires - datetime.fromisoformat(_now())).total_seconds())


def _wait_for_guest(life: _Life) -> dict[str, Any] | None:
    """Wait until the guest is up (`None`), or for the reason to end the mount before."""
    order = life.record.order
    if not order.prepare:
        return None
    began = datetime.fromisoformat(_now())
    while True:
        look = _is_up(dump(order))
        if look.get("result"):
            return None
        if "error" in look:
            return {"reason": "the mount broke while the guest was booting", **look}
        waited = (datetime.fromisoformat(_now()) - began).total_seconds()
        if waited > order.boot_timeout:
            tail = _console_tail(life.record.outputs)
            return {
                "reason": "the guest did not come up",
                "error": f"the guest did not reach multi-user within {order.boot_timeout:.0f} s; "
                f"its console's last lines:\n{tail}",
                "hint": "allow more time by --boot-timeout, and look at what the console says",
            }
        left = _left(order)
        if left == 0:
            return {"reason": "expired before the guest was up"}
        message = DBOS.recv(CONTROL, timeout_seconds=min(LOOK_PERIOD, left))
        if message is not None:
            return {"reason": message["reason"]}


def _wait_for_end(life: _Life) -> dict[str, Any]:
    message = DBOS.recv(CONTROL, timeout_seconds=_left(life.record.order))
    return {"reason": "expired" if message is None else message["reason"]}


def _end(life: _Life, reason: str, cause: dict[str, Any]) -> None:
    """Take everything of the mount away. The mount has failed when `cause` holds an error."""
    life.move(MountState.ENDING, reason, left=False, error=None, hint=None)
    try:
        _destroy(life.record.order.mount)
    except Exception as error:
        life.move(
            MountState.FAILED,
            "something of it is left",
            left=True,
            error=f"{cause.get('error') or reason}; and it could not be taken away: {error}",
            hint=f"`livemount unmount {life.record.order.mount}` tries again",
        )
        return
    if "error" in cause:
        life.move(MountState.FAILED, f"{reason}; nothing of it is left", error=cause["error"], hint=cause.get("hint"))
    else:
        life.move(MountState.ENDED, f"{reason}; nothing of it is left")


@DBOS.workflow(name="clean")
def clean_workflow(data: dict[str, Any]) -> None:
    """Take away what a failed mount left; its record goes on under this workflow."""
    life = _Life(MountRecord.model_validate(data))
    _end(life, "asked to be taken away again", {})
