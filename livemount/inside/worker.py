"""The process in whose namespaces an image is open; `opened` starts it, and talks to it over one socket.

Sources are read through a pseudo-disk whose stores lie in memory, so a journal can be played back without a change of
the image. Crash contract: everything it makes is in its namespaces, and goes with it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from livemount.core.errors import LivemountError, UnsupportedError
from livemount.driver.api import PseudoDiskSpec
from livemount.driver.attached import AttachedDisk
from livemount.driver.ledger import Entry, Ledger
from livemount.driver.protocol import MESSAGE_LIMIT, Message, encode, error_message
from livemount.guest.disk import Disk, Partition, needs_recovery, read_disk, read_volume
from livemount.guest.mounts import cover, mount_inside, mounted
from livemount.guest.rooted import Root
from livemount.guest.system import MOUNTABLE, find_root, mount_part, os_release, read_fstab

DISK = "disk"
"""The pseudo-disk's folder."""
ROOT = "root"
"""Where the system's root is mounted."""
KEPT = 256 << 20
"""Bytes of what was recalled that stay in memory: folders and inodes, which are read first and again."""
NEEDED_PARTS = ("/boot", "/usr")
"""Without these a system does not start."""


@contextmanager
def pseudo_disk(job: Message, scratch: Path) -> Iterator[Path]:
    """The source as a file that can be written to, which changes the source in nothing."""
    recall = scratch / "recall"
    recall.mkdir()
    ledger = Ledger(recall)
    ledger.make()
    ledger.write(Entry.LIMIT, KEPT)
    password = job["password_file"]
    spec = PseudoDiskSpec(
        id="inside",
        source=job["source"],
        password_file=Path(password) if password else None,
        directory=scratch / DISK,
        recall_directory=recall,
    )
    attached = AttachedDisk(spec, keep_recall_store=False)
    attached.attach()
    try:
        yield attached.files.disk
    finally:
        attached.destroy()


def _read(path: Path) -> Disk:
    try:
        return read_disk(path)
    except UnsupportedError:
        volume = read_volume(path)
        if volume is None:
            raise
        return volume


def _play_back(disk: Disk, scratch: Path) -> tuple[list[str], dict[int, UnsupportedError]]:
    """Play back the journals of file systems that were in use; a note of each, and which cannot be mounted."""
    folder = scratch / "journal"
    folder.mkdir()
    notes, failures = list[str](), dict[int, UnsupportedError]()
    for partition in disk.partitions:
        if partition.filesystem in MOUNTABLE and needs_recovery(disk, partition):
            try:
                with mounted(disk, partition, folder, writable=True):
                    notes.append(f"{partition} was in use: its journal was played back for this copy, not in the image")
            except UnsupportedError as error:
                failures[partition.number] = error
    return notes, failures


@contextmanager
def system(disk: Disk, scratch: Path) -> Iterator[tuple[str, list[str]]]:
    """Mount the root of the installed system and its parts, read-only; its name, and notes."""
    notes, failures = _play_back(disk, scratch)

    def check(partition: Partition | None) -> None:
        if partition is not None and partition.number in failures:
            raise failures[partition.number]

    root = find_root(disk, scratch)
    if root is None:
        for failure in failures.values():
            raise failure
        raise UnsupportedError(
            f"there is no Linux on it with a root of {', '.join(MOUNTABLE)}",
            hint="mount its root, and back up that folder; or back it up without --files",
        )
    check(root)
    folder = scratch / ROOT
    folder.mkdir()
    with mounted(disk, root, folder, writable=False), Root.at(folder) as tree:
        found = read_fstab(tree)
        for entry in sorted(found, key=lambda entry: entry.place.count("/")):
            name, place = entry.device, entry.place
            if not place.startswith("/") or place.rstrip("/") == "":
                continue
            partition = disk.named(name)
            check(partition)
            if place in NEEDED_PARTS:
                mount_part(disk, tree, name, place, writable=False)
            elif partition is not None and partition.filesystem in MOUNTABLE:
                try:
                    with tree.folder(place) as descriptor:
                        mount_inside(disk, partition, descriptor, writable=False)
                except OSError as error:
                    notes.append(f"{place} is no folder ({error.strerror}): {partition} is not in this copy")
            elif name.partition("=")[0].upper() in ("UUID", "LABEL", "PARTUUID") or name.startswith("/dev/"):
                where = "is no ext file system" if partition else "is not on this disk"
                notes.append(f"{place} {where}: it is not in this copy")
        yield os_release(tree) or "Linux", notes


def serve(channel: socket.socket) -> None:
    """Open what is asked for, and keep it open until the other end is closed."""
    job = json.loads(channel.recv(MESSAGE_LIMIT))
    try:
        scratch = cover(*map(Path, job["needed"]))
        with pseudo_disk(job, scratch) as path, system(_read(path), scratch) as (name, notes):
            descriptor = os.open(scratch, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            socket.send_fds(channel, [encode({"result": {"system": name, "notes": notes}})], [descriptor])
            os.close(descriptor)
            channel.recv(1)
    except (LivemountError, OSError) as error:
        channel.sendall(encode(error_message(error)))


def main() -> None:
    """Serve whoever started it."""
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        serve(channel)


if __name__ == "__main__":
    main()
