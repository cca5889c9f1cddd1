"""The boot server by nginx: a script is a file named after the one address that gets it.

A script holds the CHAP secret in clear text: mode 0640, group of nginx's worker, replaced at once and removed as soon
as the guest is logged in. Nothing here is kept in memory: a restarted service, or two of them, see the same files.
The access log is written by guests: lines that are not whole, not JSON or not ours are skipped.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ValidationError

from livemount.boot.api import UP_PATH, BootScript, Request, RequestKind
from livemount.boot.command import WORKER, own_scripts, worker_group
from livemount.boot.script import check_address, render_script
from livemount.core.settings import HostPaths

log = logging.getLogger(__name__)

KINDS = {"/boot": RequestKind.SCRIPT, UP_PATH: RequestKind.UP}
LINE_LIMIT = 1 << 12
"""Bytes of a log line that are looked at: ours have some 200, a hostile one what its URI has."""


class _Line(BaseModel):
    time: datetime
    address: str
    uri: str
    status: int


class NginxBoot:
    """Implements `livemount.boot.api.BootServer`. nginx itself runs under the host's supervisor."""

    def __init__(self, host: HostPaths, worker: str = WORKER) -> None:
        self._host = host
        self._worker = worker

    def publish(self, script: BootScript) -> None:
        """Answer the script's address with it from now on. Raises `UsageError` for values that are not safe."""
        text = render_script(script)
        folder = self._host.scripts
        folder.mkdir(parents=True, exist_ok=True)
        own_scripts(folder, self._worker)
        path = self._path(script.address)
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            os.fchown(descriptor, -1, worker_group(self._worker))
            os.fchmod(descriptor, 0o640)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)

    def withdraw(self, address: str) -> None:
        """Answer this address with 404 from now on; the script's file (it holds the secret) is gone."""
        self._path(address).unlink(missing_ok=True)
        self._path(address).with_suffix(".new").unlink(missing_ok=True)

    def published(self) -> list[str]:
        """The addresses that have a script."""
        names = [path.stem for path in self._host.scripts.glob("*.ipxe")] if self._host.scripts.is_dir() else []
        return sorted((name for name in names if _is_address(name)), key=ipaddress.IPv4Address)

    def requests(self, address: str, since: datetime) -> list[Request]:
        """What this address asked for at or after `since`, oldest first.

        nginx logs whole seconds: a request counts when its second does. `since` without a time zone is UTC.
        """
        check_address(address)
        floor = (since if since.tzinfo else since.replace(tzinfo=UTC)).replace(microsecond=0)
        found = []
        for line in self._lines():
            kind = KINDS.get(line.uri)
            if kind is not None and line.address == address and line.time.tzinfo and line.time >= floor:
                found.append(Request(time=line.time, address=address, kind=kind, status=line.status))
        return sorted(found, key=lambda request: request.time)

    def _lines(self) -> Iterator[_Line]:
        current = self._host.access_log
        for path in (*_rotated(current), current):
            try:
                with path.open("rb") as file:
                    for raw in _short_lines(file):
                        line = _parse(raw)
                        if line is not None:
                            yield line
            except FileNotFoundError:
                continue

    def _path(self, address: str) -> Path:
        check_address(address)
        return self._host.scripts / f"{address}.ipxe"


def _rotated(current: Path) -> list[Path]:
    """The logs that logrotate moved away and did not compress, oldest first."""
    pattern = re.compile(re.escape(current.name) + r"\.(\d+)")
    numbered = [(int(found[1]), path) for path in current.parent.glob(f"{current.name}.*")
                if (found := pattern.fullmatch(path.name))]  # fmt: skip
    return [path for _, path in sorted(numbered, reverse=True)]


def _short_lines(file: BinaryIO) -> Iterator[bytes]:
    """The whole lines of at most `LINE_LIMIT` bytes; a longer one (even one without an end) takes no memory."""
    too_long = False
    while raw := file.readline(LINE_LIMIT):
        whole = raw.endswith(b"\n")
        if whole and not too_long:
            yield raw
        too_long = not whole


def _parse(raw: bytes) -> _Line | None:
    try:
        return _Line.model_validate(json.loads(raw))
    except (ValueError, ValidationError, RecursionError):
        log.debug("a line of the boot server's access log was skipped")
        return None


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
