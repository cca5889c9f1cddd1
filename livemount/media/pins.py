"""What must not go from a repository: pins of copies, and the locks between who needs things and who removes them.

`ROOT/livemount/pins/HOLDER.json` names a snapshot that somebody needs: a mount, or a user's hold. Pinning holds the
lock `pins.lock` shared and forgetting holds it alone, both briefly, so that no copy is forgotten while it is pinned. A
backup holds `packs.lock` shared and a prune holds it alone, so that no chunk goes that a backup counts on; a mount
waits for neither. restic and rustic know nothing of this folder, and pass it over. What a repository that is not in a
folder has instead is in `livemount.media.notes`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import Field, ValidationError

from livemount.core.errors import ConflictError, CorruptError, DeniedError, NotFoundError
from livemount.core.files import replace_file
from livemount.core.machine import Frozen

log = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds to wait for a lock."""


REASON = 200
"""Characters of a reason."""


class Lock(StrEnum):
    """The locks of a repository: files in its folder `livemount`."""

    PINS = "pins.lock"
    PACKS = "packs.lock"


USES = {
    (Lock.PINS, True): "copies are being mounted",
    (Lock.PINS, False): "copies are being forgotten",
    (Lock.PACKS, True): "a backup is being made, or it is being pruned already",
    (Lock.PACKS, False): "it is being pruned",
}


class Pin(Frozen):
    """One pin."""

    snapshot: str = Field(pattern="^[0-9a-f]{64}$")
    reason: str = Field(max_length=REASON)
    """For people: `the mount m1 of host lm1`."""
    time: datetime


Held = Callable[[], None]
"""Makes sure that a lock is still held: to be called before each step that needs it. Raises `UnavailableError`."""


class Pins(Protocol):
    """The pins and the locks of one repository."""

    @property
    def unfinished(self) -> Path:
        """Folder of the journals of backups that have not come to their end."""

    @property
    def kept(self) -> bool:
        """Whether copies of ours were ever made in the repository, so that pins mean something in it."""

    def begin(self) -> None:
        """Keep pins from now on."""

    def locked(self, lock: Lock, *, alone: bool, patience: float = PATIENCE) -> AbstractContextManager[Held]:
        """Hold a lock. Raises `ConflictError` when others hold it for longer than `patience` seconds."""

    def pin(self, holder: str, snapshot: str, reason: str) -> None:
        """Keep a snapshot from being forgotten until `unpin(holder)`; a holder has one pin.

        `snapshot` may be its first digits. Raises `NotFoundError` when it is not there (any more).
        """

    def unpin(self, holder: str) -> None:
        """Take a pin away; nothing happens when there is none."""

    def all(self) -> dict[str, list[Pin]]:
        """The pins by snapshot. Raises `CorruptError` for one that cannot be read: what it protects is not known."""


class FolderPins:
    """Of a repository in a folder."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._folder = repository / "livemount"

    @property
    def unfinished(self) -> Path:
        """Folder of the journals of backups that have not come to their end."""
        return self._folder / "unfinished"

    @property
    def kept(self) -> bool:
        """Whether copies of ours were ever made in the repository, so that pins mean something in it."""
        return self._folder.is_dir()

    def begin(self) -> None:
        """Keep pins from now on."""
        self._folder.mkdir(mode=0o700, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, lock: Lock, *, alone: bool, patience: float = PATIENCE) -> Iterator[Held]:
        """Hold a lock: of the file, so until this process ends at the latest."""
        self.begin()
        descriptor = os.open(self._folder / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise ConflictError(f"{self._repository} is in use: {USES[lock, alone]}") from None
                    time.sleep(0.1)
            yield lambda: None
        finally:
            os.close(descriptor)

    def pin(self, holder: str, snapshot: str, reason: str) -> None:
        """Keep a snapshot from being forgotten until `unpin(holder)`; a holder has one pin.

        `snapshot` may be its first digits. Raises `NotFoundError` when it is not there (any more).
        """
        with self.locked(Lock.PINS, alone=False):
            names = [path.name for path in (self._repository / "snapshots").iterdir()]
            pin = Pin(
                snapshot=the_one(names, snapshot, self._repository), reason=reason[:REASON], time=datetime.now(UTC)
            )
            path = self._path(holder)
            path.parent.mkdir(mode=0o700, exist_ok=True)
            replace_file(path, pin.model_dump_json().encode())

    def unpin(self, holder: str) -> None:
        """Take a pin away; nothing happens when there is none."""
        self._path(holder).unlink(missing_ok=True)

    def all(self) -> dict[str, list[Pin]]:
        """The pins by snapshot. Raises `CorruptError` for one that cannot be read: what it protects is not known."""
        found = defaultdict(list)
        for path in sorted((self._folder / "pins").glob("*.json")):
            try:
                pin = Pin.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                continue
            except ValidationError as error:
                raise CorruptError(
                    f"the pin {path} is damaged: {error.errors()[0]['msg']}",
                    hint="look which mounts there are; when none needs it, delete the file",
                ) from error
            found[pin.snapshot].append(pin)
        return dict(found)

    def _path(self, holder: str) -> Path:
        check_holder(holder)
        return self._folder / "pins" / f"{holder}.json"


def check_holder(holder: str) -> None:
    """Raises `ValueError` for what cannot name who holds a pin."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", holder):
        raise ValueError(f"{holder!r} cannot name who holds a pin")


def the_one(snapshots: list[str], start: str, repository: Path | str) -> str:
    """The snapshot that begins with these digits. Raises `NotFoundError`."""
    found = [name for name in snapshots if name.startswith(start)]
    if len(found) != 1:
        raise NotFoundError(f"{repository} has no snapshot {start}")
    return found[0]


def mount_holder(host_root: Path, mount: str) -> str:
    """The name under which a mount of a live-mount host pins its copy: no other host or environment has it."""
    machine = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())[:60] or "host"
    return f"mount.{machine}.{hashlib.sha256(str(host_root).encode()).hexdigest()[:12]}.{mount}"


@contextlib.contextmanager
def tolerant_of_read_only(repository: Path | str, so: str = "its copy is mounted without a pin") -> Iterator[None]:
    """Let the use of a repository that cannot be written go on without a pin or a lock, and say so."""
    try:
        yield
    except (OSError, DeniedError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        log.warning("%s cannot be written: %s", repository, so)
