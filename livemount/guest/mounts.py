"""Mounts a disk file's partitions by loop devices that vanish with the mount namespace of this process.

Only to be used in a mount namespace of its own (see `worker`): then nothing is left behind, however the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from livemount.core.errors import LivemountError, UnsupportedError
from livemount.core.run import CommandError, run
from livemount.guest.disk import Disk, Partition

PLACES = ("/mnt", "/media", "/srv")
"""Folders of the Filesystem Hierarchy Standard 3.0."""
OPTIONS = "nosuid,nodev,noexec,noatime,errors=remount-ro"


@contextmanager
def mounted(disk: Disk, partition: Partition, folder: Path, *, writable: bool) -> Iterator[Path]:
    """Mount an ext2, ext3 or ext4 partition on `folder`, with all that is mounted in it unmounted at the end.

    Raises `UnsupportedError` when the kernel refuses it.
    """
    _mount(disk, partition, str(folder), writable)
    try:
        yield folder
    finally:
        run("umount", "--recursive", folder, timeout=120)


def mount_inside(disk: Disk, partition: Partition, place: int, *, writable: bool) -> None:
    """Mount a further partition on an open folder of a tree that is mounted."""
    # By the descriptor: a path could lead out of the guest's tree by a link.
    _mount(disk, partition, f"/proc/{os.getpid()}/fd/{place}", writable)


def _mount(disk: Disk, partition: Partition, place: str, writable: bool) -> None:
    # Without its journal a read-only mount writes nothing at all, not even to a file system that was in use.
    access = "rw" if writable else "ro,noload"
    options = f"loop,offset={partition.start},sizelimit={partition.size},{access},{OPTIONS}"
    try:
        run(*("mount", "--types", partition.filesystem or "ext4", "--options", options, disk.path, place), timeout=120)
    except CommandError as error:
        raise UnsupportedError(
            f"the file system {partition} of {disk.path} cannot be mounted: {error.stderr.strip()}",
            hint="was the copy made while the guest was writing, without a flush?",
        ) from error


def cover(*needed: Path) -> Path:
    """Mount a file system in memory on a folder that every Linux host has, in this namespace only, and return it.

    None of the paths that are `needed` lies below it. Raises `LivemountError` when there is no such folder.
    """
    for name in PLACES:
        place = Path(name)
        if place.is_dir() and not any(path.resolve().is_relative_to(place) for path in needed):
            run("mount", "-t", "tmpfs", "-o", "mode=0700,size=75%,nosuid,nodev,noexec", "tmpfs", place)
            return place
    raise LivemountError(f"none of {', '.join(PLACES)} is there and free to mount the guest's file systems in")
