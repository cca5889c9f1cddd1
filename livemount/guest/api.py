"""What the LM host asks of guest preparation, and what it answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

from livemount.core.machine import Firmware, Frozen


class GuestRequest(Frozen):
    """How the guest will be started."""

    firmware: Firmware
    up_url: str | None = None
    """Asked once (HTTP GET) by the guest when it has reached multi-user; `None`: nobody waits for it."""
    other_disks: tuple[Path, ...] = ()
    """The machine's further disks: files, only read."""


class EditKind(StrEnum):
    """What happens to a file of the guest."""

    ADDED = "added"
    CHANGED = "changed"
    LINKED = "linked"


class Edit(Frozen):
    """A file of the guest that preparation makes or changes."""

    path: str
    kind: EditKind
    before: int = 0
    """Bytes of the file before; 0 for one that was not there, and for a link."""
    after: int = 0
    """Bytes of the file now."""
    diff: str = ""
    """What changes in a text, as a unified diff; for a link, where it leads. Empty for programs and archives."""


class GuestReport(Frozen):
    """What was found on the disk and what was changed in it."""

    family: str
    """The guest family that prepared it, e.g. `linux`."""
    system: str
    """The guest's own words, e.g. `Debian GNU/Linux 12 (bookworm)`."""
    root: str
    """The root file system, e.g. `ext4 UUID=... (partition 3)`."""
    firmware: list[Firmware]
    """What the disk can boot under."""
    kernels: list[str]
    """The kernel releases whose initrd was prepared."""
    changes: list[str]
    """One line a change, for people."""
    edits: tuple[Edit, ...] = ()
    """The same file by file."""
    warnings: tuple[str, ...] = ()
    """What will not work as it did, and why."""
    initrd: str = ""
    """What makes the guest's initrds, e.g. `initramfs-tools`."""
    network: tuple[str, ...] = ()
    """What configures the guest's network, e.g. `ifupdown`."""
    seconds: float
