"""Pins and locks of a repository that is not in a folder: small files in it, as every store can hold them.

A note is a file named by its SHA-256, sealed with the repository's key, and never changed. To take a lock is to write
a note and then to list all: of two that want the same, each sees the other's or is seen by it. Whoever sees another's
takes its own away, waits and tries again. This needs a store in which a list has what was written before it was asked
for: S3, Azure, rest-server and SFTP are such.

A lock is renewed each minute. One that was not for `LEASE` seconds counts no more: its holder was killed, or has lost
the store; it makes sure of its own lock before each step, and removes nothing once it was not renewed for half as
long. So the clocks of all machines must agree within `SKEW` seconds. Where a holder ran on this machine and its process
is gone, the lock counts no more at once. A prune whose lock was lost is no danger to a backup: what it marks is deleted
by another prune, `KEEP_MARKED` later.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from livemount.core.errors import ConflictError, CorruptError, LivemountError, UnavailableError
from livemount.core.machine import Frozen
from livemount.core.settings import Settings
from livemount.media.pins import PATIENCE, REASON, USES, FolderPins, Held, Lock, Pin, check_holder, the_one

log = logging.getLogger(__name__)

LEASE = 600.0
"""Seconds for which a lock counts after it was last renewed."""
RENEWED_EVERY = 60.0
SKEW = LEASE / 2 - RENEWED_EVERY
"""Seconds by which the clocks of two machines may differ."""
LONGEST_PAUSE = 1.0


class Store(Protocol):
    """What is needed of `livemount._native.Repository`."""

    def notes(self) -> list[str]:
        """Their ids."""

    def read_note(self, id: str) -> bytes | None:
        """What it says; nothing when it is gone."""

    def write_note(self, text: bytes) -> str:
        """A new one. Returns its id."""

    def remove_note(self, id: str) -> None:
        """Nothing happens when it is gone."""

    def state(self) -> tuple[bytes, list[str]]:
        """The content of `config`, and the ids of the snapshots."""


class Begun(Frozen):
    """Says that pins are kept."""

    kind: Literal["begun"] = "begun"


class Pinned(Frozen):
    """A pin."""

    kind: Literal["pin"] = "pin"
    holder: str
    pin: Pin


class Locked(Frozen):
    """A lock that is held, or asked for."""

    kind: Literal["lock"] = "lock"
    lock: Lock
    alone: bool
    holder: str
    """By chance: of one call of `locked`."""
    time: datetime
    """When it was last renewed."""
    machine: str
    process: str
    """The boot, the namespace and the process: see `_process`."""


Note = Annotated[Begun | Pinned | Locked, Field(discriminator="kind")]
_NOTE: TypeAdapter[Begun | Pinned | Locked] = TypeAdapter(Note)


class NotedPins:
    """The pins and locks that a store holds as notes."""

    def __init__(self, place: Path | str, store: Store) -> None:
        self._place = place
        self._store = store
        self._read: dict[str, Begun | Pinned | Locked] = {}

    @property
    def unfinished(self) -> Path:
        """Folder of the journals of backups that have not come to their end: on the machine that makes them."""
        return Settings().home / "unfinished" / hashlib.sha256(str(self._place).encode()).hexdigest()[:16]

    @property
    def kept(self) -> bool:
        """Whether pins were ever kept in it."""
        return bool(self._store.notes())

    def begin(self) -> None:
        """Keep pins from now on."""
        if not any(isinstance(note, Begun) for note in self._notes().values()):
            self._write(Begun())

    @contextlib.contextmanager
    def locked(self, lock: Lock, *, alone: bool, patience: float = PATIENCE) -> Iterator[Held]:
        """Hold a lock, renewing it meanwhile."""
        self.begin()
        holder = secrets.token_hex(16)
        deadline = time.monotonic() + patience
        while True:
            renewed = time.monotonic()
            mine = self._write(self._lock(lock, holder, alone=alone))
            try:
                others = self._others(lock, holder, alone=alone)
            except BaseException:
                self._remove_quietly(mine)
                raise
            if not others:
                break
            self._store.remove_note(mine)
            if time.monotonic() > deadline:
                who = ", ".join(sorted({other.machine for other in others}))
                raise ConflictError(f"{self._place} is in use: {USES[lock, alone]} (by {who})")
            # By chance, or two that came at once would meet again and again.
            time.sleep((0.1 + secrets.randbelow(900) / 1000) * min(LONGEST_PAUSE, patience))
        lease = _Lease(self, self._lock(lock, holder, alone=alone), mine, renewed)
        try:
            yield lease.check
        finally:
            lease.end()

    def pin(self, holder: str, snapshot: str, reason: str) -> None:
        """Keep a snapshot from being forgotten until `unpin(holder)`."""
        check_holder(holder)
        with self.locked(Lock.PINS, alone=False) as held:
            found = the_one(self._store.state()[1], snapshot, self._place)
            before = self._pins_of(holder)
            pin = Pin(snapshot=found, reason=reason[:REASON], time=datetime.now(UTC))
            written = self._write(Pinned(holder=holder, pin=pin))
            try:
                held()
            except BaseException:
                self._remove_quietly(written)
                raise
            for id in before:
                self._store.remove_note(id)

    def unpin(self, holder: str) -> None:
        """Take a pin away; nothing happens when there is none."""
        for id in self._pins_of(holder):
            self._store.remove_note(id)

    def all(self) -> dict[str, list[Pin]]:
        """The pins by snapshot."""
        found = defaultdict(list)
        for note in self._notes().values():
            if isinstance(note, Pinned):
                found[note.pin.snapshot].append(note.pin)
        return {snapshot: sorted(pins, key=lambda pin: pin.time) for snapshot, pins in found.items()}

    def _pins_of(self, holder: str) -> list[str]:
        return [id for id, note in self._notes().items() if isinstance(note, Pinned) and note.holder == holder]

    def _lock(self, lock: Lock, holder: str, *, alone: bool) -> Locked:
        return Locked(
            lock=lock,
            alone=alone,
            holder=holder,
            time=datetime.now(UTC),
            machine=socket.gethostname()[:100],
            process=_process(),
        )

    def _others(self, lock: Lock, holder: str, *, alone: bool) -> list[Locked]:
        """The locks that keep this one from being taken. Those that count no more are removed."""
        found = []
        for id, note in self._notes().items():
            if not isinstance(note, Locked) or note.holder == holder:
                continue
            if _is_over(note):
                log.warning("%s: the lock of %s counts no more", self._place, note.machine)
                self._store.remove_note(id)
            elif note.lock is lock and (alone or note.alone):
                found.append(note)
        return found

    def _notes(self) -> dict[str, Begun | Pinned | Locked]:
        """All notes, by their ids. Raises `CorruptError` for one that cannot be read."""
        found = {}
        for id in self._store.notes():
            if id not in self._read:
                text = self._store.read_note(id)
                if text is None:
                    continue
                try:
                    self._read[id] = _NOTE.validate_json(text)
                except ValidationError as error:
                    raise CorruptError(
                        f"the note {id} in livemount/locks of {self._place} is damaged: {error.errors()[0]['msg']}",
                        hint="look which mounts there are; when none needs it, delete the file",
                    ) from error
            found[id] = self._read[id]
        self._read = dict(found)
        return found

    def _write(self, note: Begun | Pinned | Locked) -> str:
        id = self._store.write_note(note.model_dump_json().encode())
        self._read = {**self._read, id: note}
        return id

    def _remove_quietly(self, id: str) -> None:
        try:
            self._store.remove_note(id)
        except LivemountError as error:
            log.warning("%s: a note stays until its time is over: %s", self._place, error)


class _Lease:
    """A lock that is renewed until its end."""

    def __init__(self, pins: NotedPins, note: Locked, id: str, renewed: float) -> None:
        self._pins = pins
        self._note = note
        self._id = id
        self._renewed = renewed
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises `UnavailableError` when others may hold it as well by now."""
        if time.monotonic() - self._renewed > LEASE / 2:
            raise UnavailableError(f"the lock of {self._pins._place} was lost: it could not be renewed")

    def end(self) -> None:
        """Let others have it."""
        self._ended.set()
        self._thread.join()
        self._pins._remove_quietly(self._id)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            began = time.monotonic()
            try:
                id = self._pins._write(self._note.model_copy(update={"time": datetime.now(UTC)}))
            except LivemountError as error:
                log.warning("%s: a lock could not be renewed: %s", self._pins._place, error)
                continue
            self._pins._remove_quietly(self._id)
            self._id, self._renewed = id, began


class BothPins:
    """Of a repository in a folder that is reached as one elsewhere as well: what either knows counts."""

    def __init__(self, folder: FolderPins, noted: NotedPins) -> None:
        self._folder = folder
        self._noted = noted

    @property
    def unfinished(self) -> Path:
        """As of the folder."""
        return self._folder.unfinished

    @property
    def kept(self) -> bool:
        """They are."""
        return True

    def begin(self) -> None:
        """Keep pins from now on."""
        self._folder.begin()

    @contextlib.contextmanager
    def locked(self, lock: Lock, *, alone: bool, patience: float = PATIENCE) -> Iterator[Held]:
        """Hold both."""
        with (
            self._folder.locked(lock, alone=alone, patience=patience),
            self._noted.locked(lock, alone=alone, patience=patience) as held,
        ):
            yield held

    def pin(self, holder: str, snapshot: str, reason: str) -> None:
        """Keep a snapshot from being forgotten, by whichever way."""
        self._noted.pin(holder, snapshot, reason)
        self._folder.pin(holder, snapshot, reason)

    def unpin(self, holder: str) -> None:
        """Take a pin away."""
        self._folder.unpin(holder)
        self._noted.unpin(holder)

    def all(self) -> dict[str, list[Pin]]:
        """The pins by snapshot: those of both are the same pin."""
        found = self._folder.all()
        for snapshot, pins in self._noted.all().items():
            known = {pin.reason for pin in found.get(snapshot, [])}
            found.setdefault(snapshot, []).extend(pin for pin in pins if pin.reason not in known)
        return found


def pins_of(place: Path | str, store: Store) -> FolderPins | NotedPins | BothPins:
    """The pins of a repository that is open."""
    noted = NotedPins(place, store)
    if isinstance(place, str):
        return noted
    folder = FolderPins(place)
    return BothPins(folder, noted) if noted.kept else folder


def _process() -> str:
    """This process, among those of this machine since it was started: `BOOT NAMESPACE PID START`."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getpid()} {_started(os.getpid())}"


def _started(process: int) -> str:
    """When a process was started, in ticks; empty when it is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[19]


def _is_over(note: Locked) -> bool:
    if datetime.now(UTC) - note.time > timedelta(seconds=LEASE):
        return True
    *place, process, started = note.process.split()
    *here, _, _ = _process().split()
    return place == here and process.isdigit() and _started(int(process)) != started
