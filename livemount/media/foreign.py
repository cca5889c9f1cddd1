"""A copy made of a source that is in no repository of ours: mounted as it lies there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from livemount.core.errors import UsageError
from livemount.core.machine import Copy, CopyDisk, Firmware, MachineDescription, is_name
from livemount.media.detect import detect
from livemount.media.registry import named, open_source


@dataclass(frozen=True)
class Wanted:
    """What a user says of the machine; the rest is detected or as by default."""

    firmware: Firmware | None = None
    cpus: int | None = None
    memory_mib: int | None = None


def copy_of_sources(uris: Sequence[str], password_file: Path | None, name: str, wanted: Wanted) -> Copy:
    """Look at sources, and describe the machine `name` whose disks they are; it starts from the first.

    Raises what opening and reading them raise.
    """
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name a machine", hint="lower-case letters, digits, hyphens; at most 40")
    disks: list[CopyDisk] = []
    identities: list[str] = []
    firmware = wanted.firmware
    for number, uri in enumerate(map(named, uris)):
        source = open_source(uri, password_file)
        try:
            if firmware is None:
                firmware = detect(source.read, source.size).firmware
            stored = sum(extent.length for extent in source.extents(0, source.size) if not extent.hole)
            disks.append(
                CopyDisk(file=f"disk{number}.raw", size=source.size, stored=stored, boot=number == 0, source=uri)
            )
            identities.append(source.identity)
        finally:
            source.close()
    given = {"firmware": firmware, "cpus": wanted.cpus, "memory_mib": wanted.memory_mib}
    joined = hashlib.sha256("".join(identities).encode()).hexdigest()
    return Copy(
        id=identities[0] if len(identities) == 1 else joined,
        name=name,
        time=datetime.now(UTC),
        size=sum(disk.size for disk in disks),
        stored=sum(disk.stored for disk in disks),
        description=MachineDescription.model_validate({k: v for k, v in given.items() if v is not None}),
        source=disks[0].source,
        disks=tuple(disks),
    )
