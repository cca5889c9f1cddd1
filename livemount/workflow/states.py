"""The states of a mount and the ways between them; what is kept of a mount from the first word to the end."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field

from livemount.core.machine import HOLD_SECONDS, NAME_PATTERN, Copy, Frozen, HoldSeconds


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


class Transition(Frozen):
    """One step of a mount's life."""

    state: MountState
    time: datetime
    reason: str


class MountRecord(Frozen):
    """All that is known of a mount, as clients see it."""

    order: MountOrder
    history: list[Transition]
    outputs: dict[str, Any] = Field(default_factory=dict)
    """What its stack exported: address, console log and the like."""
    error: str | None = None
    """Why it did not come up, or what could not be taken away."""
    hint: str | None = None
    left: bool = False
    """It has failed, and something of it could not be taken away."""

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
