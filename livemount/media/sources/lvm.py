"""`lvm:///GROUP/VOLUME`: a logical volume of this machine that does not change: a snapshot, or one that is read-only.

What lvs says of it is looked at when it is opened; a snapshot that can be written to must have nobody who does.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

from livemount.core.errors import (
    ConflictError,
    CorruptError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.media.registry import SourceUri
from livemount.media.source import RangeSource, Source
from livemount.media.sources.file import read_error, read_exactly

SCHEMES = ("lvm",)
CHUNK = 64 << 10
PATIENCE = 30.0
"""Seconds that lvs may take."""
FIELDS = ("vg_name", "lv_name", "lv_uuid", "lv_path", "lv_size", "lv_attr", "origin", "lv_time")
NAME = re.compile(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]{0,126}")
"""As lvm(8) has it."""


def arguments(group: str, volume: str) -> list[str]:
    """The command that tells of a volume."""
    words = ["lvs", "--readonly", "--reportformat", "json", "--units", "b", "--nosuffix", "--options", ",".join(FIELDS)]
    return [*words, f"{group}/{volume}"]


def look(group: str, volume: str) -> dict[str, str]:
    """What lvs says of a volume. Raises `NotFoundError`, `UnavailableError`, `UnsupportedError` without LVM."""
    environment = {**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"}
    try:
        done = subprocess.run(
            arguments(group, volume), env=environment, capture_output=True, timeout=PATIENCE, check=False
        )
    except FileNotFoundError as error:
        raise UnsupportedError("there is no LVM on this machine", hint="apt-get install lvm2") from error
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"lvs does not end in {PATIENCE:.0f} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        kind = NotFoundError if re.search("not found|Failed to find", said) else UnavailableError
        raise kind(f"lvs knows no {group}/{volume}: {said[-300:]}")
    return parse(done.stdout, group, volume)


def parse(output: bytes, group: str, volume: str) -> dict[str, str]:
    """The one volume of a report. Raises `UnsupportedError` for what is none."""
    try:
        report: Any = json.loads(output)
        (found,) = report["report"][0]["lv"]
        facts = {name: found[name] for name in FIELDS}
    except (ValueError, LookupError, TypeError) as error:
        raise UnsupportedError(f"lvs says something else than a report of {group}/{volume}") from error
    whole = all(isinstance(value, str) for value in facts.values())
    if not whole or (facts["vg_name"], facts["lv_name"]) != (group, volume) or not facts["lv_size"].isdecimal():
        raise UnsupportedError(f"lvs says something else than a report of {group}/{volume}")
    return facts


def check(facts: dict[str, str]) -> None:
    """Raises errors for a volume that may change, or cannot be read."""
    name, attributes = f"{facts['vg_name']}/{facts['lv_name']}", facts["lv_attr"].ljust(10, "-")
    kind, permissions, state, used, health = attributes[0], attributes[1], attributes[4], attributes[5], attributes[8]
    if state in "ISMm" or health in "XF":
        raise CorruptError(f"the snapshot {name} is not valid any more: its space ran out, or it failed")
    if state != "a":
        raise UnavailableError(
            f"the volume {name} is not active", hint=f"lvchange --activate y --ignoreactivationskip {name}"
        )
    if permissions in "rR":
        return
    if kind != "s" and not (kind == "V" and facts["origin"]):
        raise UnsupportedError(
            f"{name} is no snapshot and can be written to", hint=f"lvcreate --snapshot --permission r ... {name}"
        )
    if used == "o" and _is_used(facts["lv_path"]):
        raise ConflictError(
            f"the snapshot {name} is in use and can be written to", hint=f"lvchange --permission r {name}"
        )


def _is_used(path: str) -> bool:
    """Whether somebody has mounted or taken the device, as who opens it alone does."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError:
        return True
    return False


class LogicalVolume(RangeSource):
    """A `Source` over a volume's device."""

    def __init__(self, group: str, volume: str) -> None:
        facts = look(group, volume)
        check(facts)
        self._path = Path(facts["lv_path"])
        self._name = str(self._path)
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise read_error(self._path, error) from error
        size = os.lseek(self._descriptor, 0, os.SEEK_END)
        if not stat.S_ISBLK(os.fstat(self._descriptor).st_mode) or size != int(facts["lv_size"]) or size % 512:
            self.close()
            raise UnsupportedError(f"{self._path} is not the volume of {facts['lv_size']} bytes that lvs tells of")
        self._size = size
        self._identity = hashlib.sha256(repr(("lvm", facts["lv_uuid"], size, facts["lv_time"])).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self._size

    @property
    def identity(self) -> str:
        """Made of the volume's UUID, its size and when it was made."""
        return self._identity

    @property
    def chunk_size(self) -> int:
        """64 KiB."""
        return CHUNK

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        return read_exactly(self._descriptor, self._path, offset, length)

    def close(self) -> None:
        """Let go of the device."""
        if self._open:
            self._open = False
            os.close(self._descriptor)


def open(uri: str, password_file: Path | None) -> Source:
    """Open a volume; it has no password."""
    parsed = SourceUri.parse(uri)
    parsed.require()
    if password_file is not None:
        raise UsageError(f"{uri} has no password")
    names = parsed.path.parts[1:]
    if len(names) != 2 or not all(NAME.fullmatch(name) for name in names):
        raise UsageError(f"{uri!r} names no logical volume", hint="for example lvm:///vg0/web01-snapshot")
    return LogicalVolume(*names)
