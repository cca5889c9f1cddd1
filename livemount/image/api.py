"""What the machine image is made from, and what comes out."""

from __future__ import annotations

from pathlib import Path

from livemount.boot.api import BOOT_URL
from livemount.core.machine import Frozen


class ImageRequest(Frozen):
    """What goes into the image: all of it counts into its digest."""

    boot_url: str = BOOT_URL


class MachineImage(Frozen):
    """A baked image: a raw disk that starts under BIOS and UEFI."""

    digest: str
    """SHA-256 (hex) of the image's bytes."""
    path: Path
    """`IMAGES/DIGEST.raw`, read-only."""
    request: ImageRequest
