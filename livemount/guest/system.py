"""Finds the system that is installed on a disk, and mounts its parts. A guest's tree is read: it is not trusted."""

from __future__ import annotations

import shlex
from pathlib import Path

from livemount.core.errors import UnsupportedError
from livemount.guest import fstab
from livemount.guest.disk import Disk, Partition
from livemount.guest.mounts import mount_inside, mounted
from livemount.guest.rooted import Root

FSTAB = "/etc/fstab"
MOUNTABLE = ("ext4", "ext3", "ext2")


def find_root(disk: Disk, scratch: Path) -> Partition | None:
    """The partition with an installed system; of several, the one whose own fstab says that it is `/`."""
    candidates = []
    folder = scratch / "look"
    folder.mkdir()
    for partition in disk.partitions:
        if partition.filesystem in MOUNTABLE:
            with mounted(disk, partition, folder, writable=False) as tree, Root.at(tree) as root:
                if root.is_folder("/etc") and os_release(root) is not None:
                    own = any(disk.named(entry.device) == partition for entry in read_fstab(root) if entry.place == "/")
                    candidates.append((not own, partition.number, partition))
    return min(candidates)[2] if candidates else None


def mount_part(disk: Disk, root: Root, name: str, place: str, *, writable: bool) -> None:
    """Mount what the tree's fstab has at `place`. Raises `UnsupportedError` when it is not on this disk."""
    partition = disk.named(name)
    if partition is None:
        raise UnsupportedError(f"the guest's {place} is on {name}, which is not on this disk")
    if partition.filesystem not in MOUNTABLE:
        raise UnsupportedError(f"the guest's {place} is {partition}, and only {', '.join(MOUNTABLE)} can be read")
    with root.folder(place) as descriptor:
        mount_inside(disk, partition, descriptor, writable=writable)


def os_release(root: Root) -> str | None:
    """What the system in a tree calls itself; `None` when there is none."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        # A link there may lead to a /usr that is not mounted.
        if root.is_file(path):
            for line in root.read_text(path, 64 * 1024).splitlines():
                key, _, value = line.partition("=")
                if key == "PRETTY_NAME":
                    return "".join(c for c in " ".join(_words(value)) if c.isprintable())[:200]
            return "Linux"
    return None


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


def read_fstab(root: Root) -> list[fstab.Entry]:
    """What is mounted where, in order."""
    return fstab.parse(root.read_text(FSTAB)) if root.is_file(FSTAB) else []
