"""What applying a set of files would do: a comparison of what they say with the newest mount of each name.

What was applied is kept in the mount's own order, so nothing else is to be kept in step: an apply that is killed leaves
a plan that goes on from there. Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import Field

from livemount.core.duration import Duration
from livemount.core.machine import Frozen
from livemount.gitops.spec import EXTEND_ONLY, MountSpec
from livemount.workflow.states import Declared, EndCause, MountOrder, MountRecord, MountState


class Action(StrEnum):
    """What is done about a mount."""

    MOUNT = "mount"
    REPLACE = "replace"
    """It is ended, with all that was written in it, and made anew."""
    CHANGE = "change"
    """It goes on and ends at another time."""
    END = "end"
    NOTHING = "nothing"
    CONFLICT = "conflict"
    """Its name belongs to a mount that this set has not made: nothing at all is applied."""


_ANEW = {
    EndCause.SUSPENDED: "it is not suspended any more",
    EndCause.REMOVED: "its file is there again",
    EndCause.REPLACED: "it was ended to be made anew",
}
"""Why a mount comes with a new lease though its file is the one that was applied."""


class FieldChange(Frozen):
    """A field of a file, as it was applied and as it is now; `None`: it is not given."""

    field: str
    before: Any
    after: Any


class Step(Frozen):
    """What is done about one mount."""

    mount: str
    action: Action
    reason: str
    changes: tuple[FieldChange, ...] = ()
    expires: datetime | None = None
    """When it will end."""
    cause: EndCause | None = None
    """With which it is ended."""
    declared: Declared | None = Field(default=None, exclude=True)
    """What is kept of the file with the mount."""


@dataclass(frozen=True)
class _Made:
    """The newest mount of a name, made by this set."""

    record: MountRecord
    declared: Declared

    @property
    def order(self) -> MountOrder:
        return self.record.order

    @property
    def over(self) -> bool:
        """It is over, or will be without more being done."""
        state = self.record.state
        return state is MountState.ENDING or (state.final and not self.record.left)


def plan(
    specs: Iterable[MountSpec], records: Mapping[str, MountRecord], set_name: str, now: datetime, *, prune: bool
) -> list[Step]:
    """What is to be done, in the order of the files; then about mounts of the set that no file names any more.

    `records`: the newest of each name, those that are over as well.
    """
    steps = [_step(spec, records.get(spec.name), set_name, now) for spec in specs]
    named = {step.mount for step in steps}
    for mount, record in records.items():
        made = _made(record, set_name)
        if made is not None and mount not in named and not made.over:
            steps.append(
                Step(mount=mount, action=Action.END, reason="no file names it any more", cause=EndCause.REMOVED)
                if prune
                else Step(mount=mount, action=Action.NOTHING, reason="no file names it any more; --prune would end it")
            )
    return steps


def _made(record: MountRecord | None, set_name: str) -> _Made | None:
    declared = record.order.declared if record is not None else None
    if record is None or declared is None or declared.set != set_name:
        return None
    return _Made(record, declared)


def _step(spec: MountSpec, record: MountRecord | None, set_name: str, now: datetime) -> Step:
    made = _made(record, set_name)
    if made is None:
        if record is not None and (record.left or not record.state.final):
            other = record.order.declared
            whose = f"the set {other.set!r} made it" if other else "it was asked for by hand"
            return Step(mount=spec.name, action=Action.CONFLICT, reason=f"there is a mount of this name: {whose}")
        return _begin(spec, set_name, now, "not there yet")
    changes = field_changes(made.declared.spec, spec.dump())
    if made.over:
        return _over(spec, made, changes, now)
    if spec.suspend:
        return Step(mount=spec.name, action=Action.END, reason="suspended", cause=EndCause.SUSPENDED)
    if made.record.left:
        ends = None if changes else made.declared.expires
        return _replace(spec, set_name, now, "failed, and something of it is left", changes, ends)
    if not changes:
        return Step(mount=spec.name, action=Action.NOTHING, reason=_as_it_is(made), expires=made.order.expires)
    if {change.field for change in changes} <= EXTEND_ONLY:
        return _change(spec, made, changes, now)
    return _replace(spec, set_name, now, "its file has changed; what was written in it is lost", changes, None)


def _as_it_is(made: _Made) -> str:
    if made.order.expires != made.declared.expires:
        return f"{made.record.state}; its expiry was changed by hand"
    return str(made.record.state)


def _over(spec: MountSpec, made: _Made, changes: tuple[FieldChange, ...], now: datetime) -> Step:
    """About a mount that was, and is over."""
    cause = made.record.ended_by
    if changes:
        return _begin(spec, made.declared.set, now, "its file has changed", changes)
    if cause is not None and cause in _ANEW:
        return _begin(spec, made.declared.set, now, _ANEW[cause])
    if cause in (EndCause.EXPIRED, None) or made.declared.expires <= now:
        return _nothing(spec, "its time is over; a change of its file makes it anew")
    # Its lease was given when it was applied: what comes back, ends when it should have.
    reason = "it was ended by hand" if cause is EndCause.ASKED else f"it failed: {made.record.reason}"
    return _begin(spec, made.declared.set, now, reason, expires=made.declared.expires)


def _change(spec: MountSpec, made: _Made, changes: tuple[FieldChange, ...], now: datetime) -> Step:
    """About a mount that goes on."""
    expires, lease = made.order.expires, made.declared.expires
    if any(change.field != "description" for change in changes):
        ttl = made.declared.spec.get("ttl")
        expires = lease = spec.expires(lease - Duration(ttl).delta if ttl else made.record.history[0].time)
    step = Step(
        mount=spec.name,
        action=Action.CHANGE,
        reason="its file has changed",
        changes=changes,
        expires=expires,
        declared=Declared(set=made.declared.set, spec=spec.dump(), expires=lease),
    )
    if expires > now:
        return step
    return step.model_copy(
        update={
            "action": Action.END,
            "reason": "its file has changed: its time is over by now",
            "cause": EndCause.EXPIRED,
        }
    )


def _begin(
    spec: MountSpec,
    set_name: str,
    now: datetime,
    reason: str,
    changes: tuple[FieldChange, ...] = (),
    expires: datetime | None = None,
) -> Step:
    if spec.suspend:
        return _nothing(spec, "suspended")
    ends = expires or spec.expires(now)
    if ends <= now:
        return _nothing(spec, "its time was over before it was made")
    return Step(
        mount=spec.name,
        action=Action.MOUNT,
        reason=reason,
        changes=changes,
        expires=ends,
        declared=Declared(set=set_name, spec=spec.dump(), expires=ends),
    )


def _replace(
    spec: MountSpec,
    set_name: str,
    now: datetime,
    reason: str,
    changes: tuple[FieldChange, ...],
    expires: datetime | None,
) -> Step:
    step = _begin(spec, set_name, now, reason, changes, expires)
    if step.action is Action.MOUNT:
        return step.model_copy(update={"action": Action.REPLACE, "cause": EndCause.REPLACED})
    over = "its time is over"
    return Step(mount=spec.name, action=Action.END, reason=over, changes=changes, cause=EndCause.EXPIRED)


def _nothing(spec: MountSpec, reason: str) -> Step:
    return Step(mount=spec.name, action=Action.NOTHING, reason=reason)


def field_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[FieldChange, ...]:
    """The fields that differ, in the order of the file now, then those that went."""
    fields = [*after, *(field for field in before if field not in after)]
    return tuple(
        FieldChange(field=field, before=before.get(field), after=after.get(field))
        for field in fields
        if before.get(field) != after.get(field)
    )
