"""A copy made of a source that is in no repository of ours: mounted as it lies there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from livemount.core.errors import UsageError
from livemount.core.machine import Copy, Firmware, MachineDescription, is_name
from livemount.media.detect import detect
from livemount.media.registry import named, open_source


@dataclass(frozen=True)
class Wanted:
    """What a user says of the machine; the rest is detected or as by default."""

    firmware: Firmware | None = None
    cpus: int | None = None
    memory_mib: int | None = None


def copy_of_source(uri: str, password_file: Path | None, name: str, wanted: Wanted) -> Copy:
    """Look at a source, and describe the machine `name` whose disk it is. Raises what opening and reading it raise."""
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name a machine", hint="lower-case letters, digits, hyphens; at most 40")
    uri = named(uri)
    source = open_source(uri, password_file)
    try:
        firmware = wanted.firmware or detect(source.read, source.size).firmware
        given = {"firmware": firmware, "cpus": wanted.cpus, "memory_mib": wanted.memory_mib}
        extents = source.extents(0, source.size)
        return Copy(
            id=source.identity,
            name=name,
            time=datetime.now(UTC),
            size=source.size,
            stored=sum(extent.length for extent in extents if not extent.hole),
            description=MachineDescription.model_validate({k: v for k, v in given.items() if v is not None}),
            source=uri,
        )
    finally:
        source.close()
