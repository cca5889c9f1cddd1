"""What a guest family is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livemount.core.machine import Firmware
from livemount.guest.api import GuestReport, GuestRequest
from livemount.guest.disk import Disk
from livemount.guest.rooted import Root
from livemount.guest.tools import GuestTools


@dataclass(frozen=True)
class Job:
    """One disk to prepare. `scratch` is a folder of a file system that vanishes with the process."""

    disk: Disk
    request: GuestRequest
    tools: GuestTools
    scratch: Path
    firmware: list[Firmware]
    missing_loader: str | None
    """An EFI loader that must be copied to the removable path before the disk starts under UEFI."""
    others: tuple[Disk, ...] = ()
    """The machine's further disks."""


@dataclass(frozen=True)
class Family:
    """What it can do."""

    name: str
    prepare: Callable[[Job], GuestReport | None]
    """Returns `None` when the disk holds no system of this family."""
    look: Callable[[Disk, Path], str | None]
    """What the system on a disk calls itself, given scratch space; nothing is written. `None`: none of this family."""
    name_of: Callable[[Root], str | None]
    """The same of a tree."""
