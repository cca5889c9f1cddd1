"""What the system in what is backed up calls itself, for a copy's description."""

from __future__ import annotations

import logging
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.machine import MachineDescription
from livemount.guest.disk import EXT_MAGIC
from livemount.guest.rooted import Root
from livemount.guest.system import os_release
from livemount.media.disks import DiskInput, source_uri

MBR_SIGNATURE = b"\x55\xaa"
"""A disk with a GPT has it as well (UEFI 2.10, 5.2.3)."""

log = logging.getLogger(__name__)


def described(machine: MachineDescription, given: DiskInput) -> MachineDescription:
    """The description with its system: detected where it says none, of a folder, a raw image or a source.

    A backup does not fail for it: where it cannot be told (it needs root) the description stays as it is.
    """
    if machine.system:
        return machine
    try:
        return machine.model_copy(update={"system": system_of(given)})
    except (LivemountError, OSError) as error:
        log.info("what system %s holds cannot be told: %s", given.place, error)
        return machine


def system_of(given: DiskInput) -> str:
    """In its own words, e.g. `Debian GNU/Linux 12 (bookworm)`; empty where a folder has none that is known.

    Nothing is written. Raises what `opened` raises.
    """
    if isinstance(given.place, Path) and given.place.is_dir():
        with Root.at(given.place) as root:
            return os_release(root) or ""
    if isinstance(given.place, Path) and not _may_have_one(given.place):
        return ""
    # Imported late: only this needs the driver, and every command imports this module.
    from livemount.inside.api import opened

    with opened(source_uri(given.place), given.password_file) as inside:
        return inside.system


def _may_have_one(image: Path) -> bool:
    """Whether a raw image has a partition table or is an ext file system: opening others tells nothing."""
    if not image.is_file():
        return False
    with image.open("rb") as file:
        head = file.read(2048)
    return head[510:512] == MBR_SIGNATURE or head[1080:1082] == EXT_MAGIC
