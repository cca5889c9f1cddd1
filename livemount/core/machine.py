"""The words of the domain that cross boxes: what a machine is, what a copy of it is, and their names."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
"""Names of machines, mounts and environments: safe as file, host, IQN and namespace names."""


def is_name(text: str) -> bool:
    """Whether `text` can name a machine, a mount or an environment."""
    return re.fullmatch(NAME_PATTERN, text) is not None


LONGEST_HOLD = 3600.0
HOLD_SECONDS = 20.0
"""How long I/O is held for a source that is away, where nothing else is said.

Shorter than the 30 s after which Linux's SCSI layer gives up on a command: the guest sees one clean medium error
instead of aborts and resets.
"""
HoldSeconds = Annotated[float, Field(ge=0, le=LONGEST_HOLD)]
"""How long I/O waits for a source that does not answer, from the time it stopped answering, before it fails."""


class Firmware(StrEnum):
    """What starts the machine."""

    BIOS = "bios"
    UEFI = "uefi"


class Frozen(BaseModel):
    """Base of our records: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MachineDescription(Frozen):
    """What a copy remembers of the machine it was made from."""

    firmware: Firmware = Firmware.BIOS
    cpus: int = Field(default=1, ge=1, le=512)
    memory_mib: int = Field(default=1024, ge=64)
    architecture: str = "x86_64"


class Copy(Frozen):
    """A copy: one machine's disk as it was at one time, in a repository."""

    id: str
    """64 hex digits: the snapshot id in the repository."""
    name: str
    """The machine's name."""
    time: datetime
    size: int
    """Bytes of the disk as the guest sees it."""
    stored: int
    """Bytes of the disk that are not holes."""
    description: MachineDescription
    source: str
    """The URI `livemount.media.open_source` takes to read this copy."""
