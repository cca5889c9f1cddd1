"""The words of the LM host's REST API: requests, answers, events. `livemount.host.client` speaks it."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from livemount.core.machine import HOLD_SECONDS, NAME_PATTERN, Firmware, Frozen, HoldSeconds
from livemount.driver.api import PseudoDiskStats
from livemount.guest.api import GuestReport
from livemount.target.api import Session

MOST_DISKS = 64
"""Of one machine."""


class PseudoDiskRequest(Frozen):
    """Body of `PUT /v1/pseudo-disks/{mount}`. The same body again changes nothing; another one is a conflict (409)."""

    source: str
    """The disk that the machine starts from."""
    disks: tuple[str, ...] = Field(default=(), max_length=MOST_DISKS)
    """All disks of a machine of several, in its order, `source` one of them. Empty: `source` is the only one."""
    password_file: Path | None = None
    """A file on the LM host."""
    address: str = Field(pattern=r"^\d{1,3}(\.\d{1,3}){3}$")
    """Address of the guest's interface: gets the boot script, may log in."""
    firmware: Firmware
    prepare: bool = True
    """Run guest preparation."""
    profile: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the boot profile, the same for all copies of one machine (see `PseudoDiskSpec.profile`)."""
    hold_seconds: HoldSeconds = HOLD_SECONDS

    @model_validator(mode="after")
    def _starts_from_one(self) -> Self:
        if self.disks and self.source not in self.disks:
            raise ValueError("the source is not one of the disks")
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """All disks, in the machine's order."""
        return self.disks or (self.source,)

    @property
    def boot(self) -> int:
        """The number of the disk that the machine starts from."""
        return self.sources.index(self.source)


class InspectionRequest(Frozen):
    """Body of `POST /v1/inspections`: what would a mount of these disks do to the guest, and would it boot?"""

    source: str
    """The disk that the machine starts from."""
    disks: tuple[str, ...] = Field(default=(), max_length=MOST_DISKS)
    """As in `PseudoDiskRequest`."""
    password_file: Path | None = None
    """A file on the LM host."""
    firmware: Firmware


class Inspection(Frozen):
    """Its answer. Nothing of it stays on the host, but what was recalled for it."""

    bootable: bool
    reason: str = ""
    """Why it does not boot."""
    hint: str | None = None
    report: GuestReport | None = None
    """What preparation found and changed, in a private store that is thrown away; `None` where it was refused."""
    recalled: int
    """Bytes that were recalled from the copy for it."""
    size: int
    """Bytes of the disk that the machine starts from."""


class ExportedDisk(Frozen):
    """One disk of a mount."""

    lun: int
    source: str
    stats: PseudoDiskStats


class PseudoDisk(Frozen):
    """Answer of `PUT` and `GET /v1/pseudo-disks/{mount}`. Holds no secret."""

    mount: str = Field(pattern=NAME_PATTERN)
    request: PseudoDiskRequest
    portal: str
    target_iqn: str
    initiator_iqn: str
    size: int
    """Of the disk that the machine starts from."""
    stats: PseudoDiskStats
    """Of the disk that the machine starts from."""
    disks: tuple[ExportedDisk, ...] = ()
    """All disks, in the machine's order."""
    report: GuestReport | None
    sessions: list[Session]
    healthy: bool
    """All its parts (disk, target, script or login) are there."""
    problems: list[str]


class EventKind(StrEnum):
    """What happened to a mount on its host."""

    STORES_READY = "stores-ready"
    GUEST_PREPARED = "guest-prepared"
    TARGET_READY = "target-ready"
    SCRIPT_PUBLISHED = "script-published"
    SCRIPT_FETCHED = "script-fetched"
    TARGET_LOGGED_IN = "target-logged-in"
    TARGET_LOGGED_OUT = "target-logged-out"
    SCRIPT_WITHDRAWN = "script-withdrawn"
    GUEST_UP = "guest-up"
    STRANGER = "stranger"
    """Somebody logged in from another address than the mount's."""
    REPAIRED = "repaired"


class Event(Frozen):
    """One thing that happened; `number` counts from 1 within a mount."""

    number: int
    time: datetime
    kind: EventKind
    text: str


class Events(Frozen):
    """Answer of `GET /v1/pseudo-disks/{mount}/events?after=N&wait=SECONDS`: empty when nothing came within `wait`."""

    events: list[Event]


class Problem(Frozen):
    """Every error answer: the message and hint of a `LivemountError`, its exit code, and the HTTP status it fits."""

    message: str
    hint: str | None = None
    exit_code: int


class Health(Frozen):
    """Answer of `GET /v1/health` (no token needed)."""

    ok: bool
    version: str
    problems: list[str]
