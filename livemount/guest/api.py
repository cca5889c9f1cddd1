"""What the LM host asks of guest preparation, and what it answers."""

from __future__ import annotations

from livemount.core.machine import Firmware, Frozen


class GuestRequest(Frozen):
    """How the guest will be started."""

    firmware: Firmware
    up_url: str | None = None
    """Asked once (HTTP GET) by the guest when it has reached multi-user; `None`: nobody waits for it."""


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
    seconds: float
