"""One durable workflow a mount (DBOS): up, lease, destroy.

Crash contract: the workflow's steps are recorded in DBOS's database. A killed service begins the unfinished step
again when it is back: bringing a stack up and taking it down are both idempotent, so a mount goes on or is taken away,
once. Steps answer with data, never raise across the database: what they answer is plain JSON, so that a later version
of the software can go on with a mount that an earlier one began. For that, the steps up to each wait stay what they
were: new ones come after a wait, or only for orders that earlier versions did not write.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from dbos import DBOS

from livemount.core.errors import LivemountError
from livemount.workflow.notices import Notice, NoticeKind, Notices
from livemount.workflow.states import Declared, EndCause, MountOrder, MountRecord, MountState, Transition

log = logging.getLogger(__name__)

RECORD = "record"
"""The DBOS event under which a mount's record is published."""
CONTROL = "control"
"""The DBOS topic on which a mount is told that its turn has come, that it ends at another time, or to stop."""
GO = "go"
"""The kind of message that it is a mount's turn."""
LOOK_PERIOD = 2.0
"""Seconds between two looks at a booting guest."""
OVER = {"left": False}
"""What the workflow of a mount returns that is over and has left nothing."""
FIRST_WAIT = 0.1
"""Seconds of a running mount's first wait."""


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
_notices: Notices | None = None


def use(stacks: Stacks, notices: Notices | None = None) -> None:
    """Name what this process's workflows work on: DBOS's functions take data only. Without `notices` nobody is told."""
    global _stacks, _notices
    _stacks, _notices = stacks, notices


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


@DBOS.step()
def _warn_before() -> float | None:
    return None if _notices is None else _notices.warn_before()


@DBOS.step(retries_allowed=True, max_attempts=4, interval_seconds=1.0, backoff_rate=3.0)
def _tell(notice: dict[str, Any]) -> bool:
    return _notices is not None and _notices.send(Notice.model_validate(notice))


def dump(model: MountOrder | MountRecord) -> dict[str, Any]:
    """A record as plain JSON, for DBOS's database."""
    return model.model_dump(mode="json", by_alias=True)


class _Life:
    """The mount's record within its workflow: every change is published for clients."""

    def __init__(self, record: MountRecord) -> None:
        self.record = record
        self.warned: datetime | None = None
        """The expiry that people were warned of."""
        DBOS.set_event(RECORD, dump(record))

    def move(self, state: MountState, reason: str, **changes: Any) -> None:
        self.record = self.record.moved(state, datetime.fromisoformat(_now()), reason, **changes)
        log.info("mount %s: %s (%s)", self.record.order.mount, state, reason)
        DBOS.set_event(RECORD, dump(self.record))

    def note(self, text: str, **order: Any) -> None:
        self.record = self.record.noted(datetime.fromisoformat(_now()), text, **order)
        log.info("mount %s: %s", self.record.order.mount, text)
        DBOS.set_event(RECORD, dump(self.record))

    def change(self, message: dict[str, Any]) -> None:
        """Take over what a message says: another expiry, or what the mount's file says now."""
        expires = datetime.fromisoformat(message["expires"])
        order: dict[str, Any] = {"expires": expires}
        if message.get("declared"):
            order["declared"] = Declared.model_validate(message["declared"])
        ends = f"{message['reason']}: ends {expires.astimezone(UTC).isoformat(timespec='seconds')}"
        self.note(ends if expires != self.record.order.expires else message["reason"], **order)

    def tell(self, kind: NoticeKind) -> None:
        """Send a notice, where one is wanted; that it could not be sent is no reason to end a mount."""
        order = self.record.order
        notice = Notice(
            id=f"{DBOS.workflow_id}.{kind}.{order.expires.timestamp():.0f}",
            kind=kind,
            mount=order.mount,
            copy=f"{order.copy_.name}@{order.copy_.id[:8]}",
            owner=order.owner,
            state=self.record.state,
            reason=self.record.reason,
            expires=order.expires,
            time=datetime.fromisoformat(_now()),
        )
        try:
            if _tell(notice.model_dump(mode="json", by_alias=True)):
                self.note(f"the webhook was told: {kind}")
        except Exception as error:
            last = (getattr(error, "errors", None) or [error])[-1]
            self.note(f"the webhook could not be told of {kind}: {last}")


@DBOS.workflow(name="mount", max_recovery_attempts=None)
def mount_workflow(data: dict[str, Any]) -> dict[str, Any]:
    """A mount from its order to its end. What it returns tells those who list workflows whether something is left."""
    order = MountOrder.model_validate(data)
    now = datetime.fromisoformat(_now())
    life = _Life(
        MountRecord(order=order, history=[Transition(state=MountState.REQUESTED, time=now, reason="asked for")])
    )
    stopped = _wait_for_turn(life)
    if stopped is not None:
        return _end(life, stopped)
    order = life.record.order
    life.move(MountState.PREPARING, "making interface, pseudo-disk and virtual machine")
    made = _up(dump(order))
    if "error" in made:
        return _end(life, {"reason": "could not be made", **made})
    life.move(MountState.BOOTING, "the virtual machine runs", outputs=made["result"])
    stopped = _wait_for_guest(life)
    if stopped is None:
        life.move(MountState.RUNNING, "the guest is up")
        stopped = _wait_for_end(life)
    return _end(life, stopped)


def _left(until: datetime) -> float:
    """Seconds until a time, 0 when it is over."""
    return max(0.0, (until - datetime.fromisoformat(_now())).total_seconds())


def _heard(life: _Life, seconds: float) -> dict[str, Any] | None:
    """Listen so long to what the mount is told: the reason to end it, or `None`."""
    message: dict[str, Any] | None = DBOS.recv(CONTROL, timeout_seconds=seconds)
    return None if message is None else _taken_in(life, message)


def _taken_in(life: _Life, message: dict[str, Any]) -> dict[str, Any] | None:
    if message["kind"] == "stop":
        return {"reason": message["reason"], "cause": message.get("cause", EndCause.ASKED)}
    life.change(message)
    return None


def _wait_for_turn(life: _Life) -> dict[str, Any] | None:
    """Wait until it is the mount's turn (`None`), or for the reason not to make it at all."""
    if not life.record.order.queued:
        return None
    while left := _left(life.record.order.expires):
        message = DBOS.recv(CONTROL, timeout_seconds=left)
        if message is not None and message["kind"] == GO:
            return None
        if message is not None and (stopped := _taken_in(life, message)):
            return stopped
    return {"reason": "expired before its turn came"}


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
        left = _left(life.record.order.expires)
        if left == 0:
            return {"reason": "expired before the guest was up"}
        if stopped := _heard(life, min(LOOK_PERIOD, left)):
            return stopped


def _wait_for_end(life: _Life) -> dict[str, Any]:
    """Wait for the reason to end a mount that runs; people are warned before its expiry."""
    # What is done before the first wait stays what it was in earlier versions; so that is a short one.
    stopped = _heard(life, min(FIRST_WAIT, _left(life.record.order.expires)))
    while stopped is None:
        left = _left(life.record.order.expires)
        if left == 0:
            return {"reason": "expired"}
        stopped = _heard(life, min(left, _until_warning(life)))
    return stopped


def _until_warning(life: _Life) -> float:
    """Seconds until people are to be warned; when it is time, they are."""
    expires = life.record.order.expires
    if life.warned == expires or (before := _warn_before()) is None:
        return math.inf
    if before >= (expires - life.record.history[0].time).total_seconds():
        return math.inf  # of a short mount nobody wants to hear at its beginning that it ends
    if left := _left(expires - timedelta(seconds=before)):
        return left
    life.warned = expires
    life.tell(NoticeKind.EXPIRING)
    return math.inf


def _end(life: _Life, why: dict[str, Any]) -> dict[str, Any]:
    """Take everything of the mount away. The mount has failed when `why` holds an error."""
    reason = why["reason"]
    cause = EndCause.FAILED if "error" in why else EndCause(why.get("cause", EndCause.EXPIRED))
    life.move(MountState.ENDING, reason, left=False, error=None, hint=None, ended_by=cause)
    try:
        _destroy(life.record.order.mount)
    except Exception as error:
        life.move(
            MountState.FAILED,
            "something of it is left",
            left=True,
            error=f"{why.get('error') or reason}; and it could not be taken away: {error}",
            hint=f"`livemount unmount {life.record.order.mount}` tries again",
        )
    else:
        if "error" in why:
            life.move(MountState.FAILED, f"{reason}; nothing of it is left", error=why["error"], hint=why.get("hint"))
        else:
            life.move(MountState.ENDED, f"{reason}; nothing of it is left")
    life.tell(NoticeKind.FAILED if life.record.state is MountState.FAILED else NoticeKind.ENDED)
    return {"left": life.record.left}


@DBOS.workflow(name="clean", max_recovery_attempts=None)
def clean_workflow(data: dict[str, Any]) -> dict[str, Any]:
    """Take away what a failed mount left; its record goes on under this workflow."""
    life = _Life(MountRecord.model_validate(data))
    return _end(life, {"reason": "asked to be taken away again", "cause": life.record.ended_by or EndCause.ASKED})
