"""The states of a mount and the ways between them; what is kept of a mount from the first word to the end."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from livemount.core.machine import HOLD_SECONDS, NAME_PATTERN, Copy, Frozen, HoldSeconds, Word

LONGEST_LEASE = timedelta(days=30)
SHORTEST_LEASE = timedelta(seconds=10)
MOST_NOTES = 100
"""Of the notes of a mount the newest are kept."""


class MountState(StrEnum):
    """Where a mount is in its life."""

    REQUESTED = "requested"
    PREPARING = "preparing"
    """Its stack is made: interface, pseudo-disk, virtual machine."""
    BOOTING = "booting"
    """The virtual machine runs; the guest has not reached multi-user yet."""
    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"
    """Nothing of it is left."""
    FAILED = "failed"
    """It did not come up, or could not be taken away wholly: `reason` says which."""

    @property
    def final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self in (MountState.ENDED, MountState.FAILED)


TRANSITIONS: dict[MountState, frozenset[MountState]] = {
    MountState.REQUESTED: frozenset({MountState.PREPARING, MountState.ENDING}),
    MountState.PREPARING: frozenset({MountState.BOOTING, MountState.ENDING}),
    MountState.BOOTING: frozenset({MountState.RUNNING, MountState.ENDING}),
    MountState.RUNNING: frozenset({MountState.ENDING}),
    MountState.ENDING: frozenset({MountState.ENDED, MountState.FAILED}),
    MountState.ENDED: frozenset(),
    MountState.FAILED: frozenset({MountState.ENDING}),
}


class EndCause(StrEnum):
    """What ended a mount, or is ending it."""

    EXPIRED = "expired"
    ASKED = "asked"
    """Somebody told it to end."""
    SUSPENDED = "suspended"
    """Its file says so."""
    REMOVED = "removed"
    """No file of its set names it any more."""
    REPLACED = "replaced"
    """Its file says now what only another mount can be."""
    FAILED = "failed"


class Declared(Frozen):
    """What the file of a mount said when it was applied."""

    set: Word
    """The name of the set of files that it belongs to."""
    spec: dict[str, Any]
    """The file's fields; what is as by default is left out."""
    expires: datetime
    """When the mount should end by that: `MountOrder.expires` is another time when somebody extended it."""


class MountOrder(Frozen):
    """What was asked for. Holds no secret: the repository's password is named by its file."""

    mount: str = Field(pattern=NAME_PATTERN)
    copy_: Copy = Field(alias="copy")
    password_file: Path | None = None
    cloud: str = "local"
    expires: datetime
    """When the mount ends by itself."""
    boot_timeout: float = Field(default=600, gt=0)
    """Seconds the guest has to reach multi-user, before the mount is taken away as failed."""
    prepare: bool = True
    """Run guest preparation; without it nobody waits for the guest to say that it is up."""
    hold_seconds: HoldSeconds = HOLD_SECONDS
    owner: Word = ""
    """Who asked for it: a limit of mounts for each user counts by this name."""
    declared: Declared | None = None
    """`None`: it was asked for by hand."""
    queued: bool = False
    """It waits until it is told that its turn has come; those of earlier versions did not."""


class Transition(Frozen):
    """One step of a mount's life."""

    state: MountState
    time: datetime
    reason: str


class Note(Frozen):
    """Something that happened to a mount without changing its state: it was extended, a warning was sent."""

    time: datetime
    text: str


class MountRecord(Frozen):
    """All that is known of a mount, as clients see it."""

    order: MountOrder
    """As it is now: extending a mount changes `expires`."""
    history: list[Transition]
    notes: list[Note] = Field(default_factory=list)
    outputs: dict[str, Any] = Field(default_factory=dict)
    """What its stack exported: address, console log and the like."""
    error: str | None = None
    """Why it did not come up, or what could not be taken away."""
    hint: str | None = None
    left: bool = False
    """It has failed, and something of it could not be taken away."""
    ended_by: EndCause | None = None
    """`None` while it goes on, and in records of earlier versions."""

    @property
    def state(self) -> MountState:
        """The state it is in."""
        return self.history[-1].state

    @property
    def reason(self) -> str:
        """Why it is in this state."""
        return self.history[-1].reason

    def moved(self, state: MountState, time: datetime, reason: str, **changes: Any) -> MountRecord:
        """The record after a transition. Raises `ValueError` for one that cannot be."""
        if state not in TRANSITIONS[self.state]:
            raise ValueError(f"a mount cannot go from {self.state} to {state}")
        step = Transition(state=state, time=time, reason=reason)
        return self.model_copy(update={"history": [*self.history, step], **changes})

    def noted(self, time: datetime, text: str, **order: Any) -> MountRecord:
        """The record after something that changes no state, but perhaps its `order`."""
        notes = [*self.notes, Note(time=time, text=text)][-MOST_NOTES:]
        return self.model_copy(update={"notes": notes, "order": self.order.model_copy(update=order)})
