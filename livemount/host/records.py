"""What the host remembers of each mount: one folder a mount, records written atomically, the secret by itself.

Crash contract: `record.json` is written before anything is made for the mount and is the last thing deleted, so
whatever a killed service left behind belongs to a record and can be taken away by it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from livemount.core.files import replace_file
from livemount.core.machine import Frozen, is_name
from livemount.core.secrets import read_secret, secret_file
from livemount.driver.api import PseudoDiskSpec
from livemount.guest.api import GuestReport
from livemount.host.api import PseudoDiskRequest
from livemount.media.pins import mount_holder
from livemount.target.api import Chap


class Record(Frozen):
    """A mount's record. `prepared` is set when the disk is ready to be exported, for good."""

    request: PseudoDiskRequest
    created: datetime
    prepared: bool = False
    report: GuestReport | None = None
    inspection: bool = False
    """Nothing is exported of it, and it goes with the service that made it."""


class Records:
    """The records below `HostPaths.mounts`."""

    def __init__(self, mounts: Path, recall: Path) -> None:
        self._mounts = mounts
        self._recall = recall

    def folder(self, mount: str) -> Path:
        """The mount's folder. `mount` is a checked name."""
        if not is_name(mount):
            raise ValueError(f"{mount!r} is not a mount's name")
        return self._mounts / mount

    def read(self, mount: str) -> Record | None:
        """The mount's record, or `None`."""
        try:
            return Record.model_validate_json((self.folder(mount) / "record.json").read_text())
        except FileNotFoundError:
            return None

    def write(self, mount: str, record: Record) -> None:
        """Replace the mount's record, durably."""
        folder = self.folder(mount)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        replace_file(folder / "record.json", record.model_dump_json().encode())

    def delete(self, mount: str) -> None:
        """Delete the mount's folder; the record goes last."""
        folder = self.folder(mount)
        if not folder.exists():
            return
        for entry in folder.iterdir():
            if entry.name == "record.json":
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        shutil.rmtree(folder)

    def mounts(self) -> Iterator[str]:
        """The mounts that have a record, by name."""
        if self._mounts.is_dir():
            for folder in sorted(self._mounts.iterdir()):
                if (folder / "record.json").is_file() and is_name(folder.name):
                    yield folder.name

    def chap(self, mount: str) -> Chap:
        """The mount's CHAP credentials, made on first use."""
        return Chap(user=mount, secret=read_secret(secret_file(self.folder(mount) / "chap")))

    def pins(self, mount: str, request: PseudoDiskRequest) -> list[tuple[str, str]]:
        """Each disk's source, and the name under which it is pinned."""
        holder = mount_holder(self._mounts, mount)
        return [
            (source, holder if number == request.boot else f"{holder}.{number}")
            for number, source in enumerate(request.sources)
        ]

    def disk_specs(self, mount: str, request: PseudoDiskRequest) -> list[PseudoDiskSpec]:
        """What the driver is asked for: a disk each, in the machine's order."""
        return [
            PseudoDiskSpec(
                id=mount if number == request.boot else f"{mount}.{number}",
                source=source,
                password_file=request.password_file,
                directory=self.folder(mount) / ("disk" if number == request.boot else f"disk{number}"),
                recall_directory=self._recall,
                # What is read at a boot is learnt of the disk that is booted.
                profile=request.profile if number == request.boot else None,
                hold_seconds=request.hold_seconds,
            )
            for number, source in enumerate(request.sources)
        ]
