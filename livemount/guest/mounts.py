"""Mounts a disk file's partitions by loop devices that vanish with the mount namespace of this process.

Only to be used in a mount namespace of its own (see `worker`): then nothing is left behind, however the process ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from livemount.core.errors import UnsupportedError
from livemount.core.run import CommandError, run
from livemount.guest.disk import Disk, Partition

OPTIONS = "nosuid,nodev,noexec,noatime,errors=remount-ro"


@contextmanager
def mounted(disk: Disk, partition: Partition, folder: Path, *, writable: bool) -> Iterator[Path]:
    """Mount an ext2, ext3 or ext4 partition on `folder`, with all that is mounted in it unmounted at the end.

    Raises `UnsupportedError` when the kernel refuses it.
    """
    place = f"loop,offset={partition.start},sizelimit={partition.size}"
    # Without its journal a read-only mount writes nothing at all, not even to a file system that was in use.
    access = "rw" if writable else "ro,noload"
    try:
        run(
            *("mount", "--types", partition.filesystem or "ext4"),
            *("--options", f"{place},{access},{OPTIONS}", disk.path, folder),
            timeout=120,
        )
    except CommandError as error:
        raise UnsupportedError(
            f"the file system {partition} of {disk.path} cannot be mounted: {error.stderr.strip()}",
            hint="was the copy made while the guest was writing, without a flush?",
        ) from error
    try:
        yield folder
    finally:
        run("umount", "--recursive", folder, timeout=120)


def mount_inside(disk: Disk, partition: Partition, place: int) -> None:
    """Mount a further partition read-write on an open folder of a tree that is mounted."""
    # By the descriptor: a path could lead out of the guest's tree by a link.
    target = f"/proc/{os.getpid()}/fd/{place}"
    options = f"loop,offset={partition.start},sizelimit={partition.size},rw,{OPTIONS}"
    try:
        run(
            *("mount", "--types", partition.filesystem or "ext4", "--options", options),
            *(disk.path, target),
            timeout=120,
        )
    except CommandError as error:
        raise UnsupportedError(
            f"the file system {partition} of {disk.path} cannot be mounted: {error.stderr.strip()}"
        ) from error
