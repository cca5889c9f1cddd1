"""What the system on a disk, or in a folder that is a system's root, calls itself."""

from __future__ import annotations

import logging
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.machine import MachineDescription
from livemount.guest.families import FAMILIES
from livemount.guest.prepare import confined
from livemount.guest.rooted import Root

log = logging.getLogger(__name__)


def described(machine: MachineDescription, place: Path | str) -> MachineDescription:
    """The description with its system: detected where it says none, and where it can be without reading a source.

    `place` is what is backed up: a folder, a raw image or block device, or a URI (nothing is detected of it).
    """
    if machine.system or not isinstance(place, Path):
        return machine
    try:
        return machine.model_copy(update={"system": system_of(place)})
    except (LivemountError, OSError) as error:
        # A backup does not fail for it.
        log.info("what system %s holds cannot be told: %s", place, error)
        return machine


def system_of(place: Path) -> str:
    """In its own words, e.g. `Debian GNU/Linux 12 (bookworm)`; empty where there is none that is known.

    Nothing is written, not even to a file system that is in use. Raises `LivemountError` for a disk that cannot be
    read, or when mounting is not allowed (it needs root).
    """
    if place.is_dir():
        with Root.at(place) as root:
            return next((found for family in FAMILIES if (found := family.name_of(root))), "")
    return str(confined({"look": str(place.resolve())})["system"])
