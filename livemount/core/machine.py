"""The words of the domain that cross boxes: what a machine is, what a copy of it is, and their names."""

from __future__ import annotations

import re
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"
"""Names of machines, mounts and environments: safe as file, host, IQN and namespace names."""


def is_name(text: str) -> bool:
    """Whether `text` can name a machine, a mount or an environment."""
    return re.fullmatch(NAME_PATTERN, text) is not None


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
