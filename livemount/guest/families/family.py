"""What a guest family is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from livemount.core.machine import Firmware
from livemount.guest.api import GuestReport, GuestRequest
from livemount.guest.disk import Disk
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
    """`prepare` returns `None` when the disk holds no system of this family."""

    name: str
    prepare: Callable[[Job], GuestReport | None]
