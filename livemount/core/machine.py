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


class DiskKind(StrEnum):
    """How a disk is kept in a copy."""

    BLOCK = "block"
    """Its bytes."""
    FILES = "files"
    """The files of its root file system: a disk is made of them when it is mounted."""


Word = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""A short text that people gave, or a program told."""


class DiskDescription(Frozen):
    """One disk of a machine; its place in `MachineDescription.disks` is its place in the machine."""

    file: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Its name in the copy: `disk0.raw`."""
    size: int = Field(gt=0)
    kind: DiskKind = DiskKind.BLOCK
    boot: bool = False
    """The machine starts from it; one disk has this."""
    name: Word = ""
    """What the source hypervisor, or the user, calls it."""
    serial: Word = ""
    origin: str = ""
    """Hex digits that name what was read: the same, and the same bytes. Empty where nothing can tell."""


class InterfaceDescription(Frozen):
    """A network interface of a machine."""

    mac: str = Field(pattern=r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
    model: Word = ""
    """`virtio`, `e1000`, ..."""


class MachineDescription(Frozen):
    """What a copy remembers of the machine it was made from."""

    firmware: Firmware = Firmware.BIOS
    cpus: int = Field(default=1, ge=1, le=512)
    memory_mib: int = Field(default=1024, ge=64)
    architecture: Word = "x86_64"
    disks: tuple[DiskDescription, ...] = ()
    """In the machine's order. Empty in copies of earlier versions, which have one disk, `disk0.raw`."""
    interfaces: tuple[InterfaceDescription, ...] = ()
    system: Word = ""
    """The operating system, in its own words."""
    hypervisor: Word = ""
    """Where the machine ran."""
    tags: tuple[Word, ...] = ()


class CopyDisk(Frozen):
    """A disk of a copy."""

    file: str
    size: int
    stored: int
    """Bytes that are not holes."""
    boot: bool
    source: str
    """The URI `livemount.media.open_source` takes to read it."""


class Copy(Frozen):
    """A copy: a machine's disks as they were at one time, in a repository."""

    id: str
    """64 hex digits: the snapshot id in the repository."""
    name: str
    """The machine's name."""
    time: datetime
    size: int
    """Bytes of the disks as the guest sees them."""
    stored: int
    """Bytes of the disks that are not holes."""
    description: MachineDescription
    source: str
    """The URI `livemount.media.open_source` takes to read the disk that the machine starts from."""
    disks: tuple[CopyDisk, ...] = ()
    """In the machine's order; empty for what is one disk in no repository of ours."""
    added: int | None = None
    """Bytes that it added to the repository; `None` where nothing tells."""

    @property
    def sources(self) -> list[str]:
        """The URIs of all disks, in the machine's order."""
        return [disk.source for disk in self.disks] or [self.source]

    @property
    def boot(self) -> int:
        """The number of the disk that the machine starts from."""
        return next((number for number, disk in enumerate(self.disks) if disk.boot), 0)
