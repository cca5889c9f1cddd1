"""A repository of copies, in restic's format (version 2), in a local folder.

A copy is a snapshot with the tag `livemount`, its host name the machine's name, of two files: `/NAME/disk0.raw` and
`/NAME/machine.json`. A backup leaves a whole snapshot or none; readers need no lock.
"""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from livemount import _native
from livemount.core.errors import (
    ConflictError,
    CorruptError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from livemount.core.machine import Copy, Frozen, MachineDescription, is_name
from livemount.core.secrets import read_secret
from livemount.media.detect import detect_firmware
from livemount.media.pins import Lock, Pins
from livemount.media.registry import SourceUri

log = logging.getLogger(__name__)

TAG = "livemount"
DISK_FILE = "disk0.raw"
MACHINE_FILE = "machine.json"
MAX_DESCRIPTION = 1 << 20

KEEP_MARKED = timedelta(hours=23)
"""How long a pack stays after it was marked: longer than any backup by a program that knows nothing of our locks."""

Progress = Callable[[int, int], object]
"""Called some ten times a second with the bytes read and the bytes to read; what it raises ends the backup."""


class Note(Frozen):
    """What a snapshot's description tells, so that a list of copies needs no index."""

    machine: MachineDescription
    size: int = Field(gt=0)
    stored: int = Field(ge=0)


class Pruned(Frozen):
    """What a prune did, or would do. Bytes of the repository."""

    marked: int
    """Needed by no copy: a later prune deletes it."""
    deleted: int
    """Marked by an earlier prune, deleted now."""
    repacked: int
    """Needed, written anew into other packs."""


@dataclass(frozen=True)
class Listing:
    """The copies of a repository, oldest first, and why others cannot be read."""

    copies: list[Copy]
    damaged: list[str]


@dataclass(frozen=True)
class State:
    """Tells whether the copies of a repository may have changed."""

    identity: str
    """Hex digits: which repository it is, wherever it lies."""
    snapshots: str
    """Hex digits: which snapshots it has. A snapshot never changes, it is replaced by one of another name."""


class CheckReport(Frozen):
    """What `check` found."""

    read_percent: float
    """How much of the stored data was read and verified."""
    problems: list[str]
    """What is damaged or missing."""
    leftovers: list[str]
    """What nothing needs, such as packs of a backup that was killed; `prune` removes it."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


class Rules(Frozen):
    """Which copies of a machine are kept: one that any rule keeps is kept. A number of -1 keeps all of its kind."""

    model_config = ConfigDict(alias_generator=lambda field: field.replace("_", "-"), populate_by_name=True)

    keep_last: int | None = Field(default=None, ge=-1)
    keep_hourly: int | None = Field(default=None, ge=-1)
    keep_daily: int | None = Field(default=None, ge=-1)
    keep_weekly: int | None = Field(default=None, ge=-1)
    keep_monthly: int | None = Field(default=None, ge=-1)
    keep_yearly: int | None = Field(default=None, ge=-1)
    keep_within: str | None = None
    """A span before the newest copy, such as `30d` or `1y 6mo`."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a copy, and why it is kept."""

    copy: Copy
    kept: bool
    reasons: list[str]


class Repository:
    """An open repository. Every method may be called from any thread."""

    def __init__(self, path: Path, native: _native.Repository) -> None:
        self.path = path
        self.pins = Pins(path)
        self._native = native

    @classmethod
    def init(cls, path: Path, password_file: Path) -> Repository:
        """Make a new, encrypted repository in an empty or missing folder.

        Raises `ConflictError` when the folder is not empty, `DeniedError` for a bad password file.
        """
        path = path.absolute()
        made = cls(path, _native.Repository.init(path, _password(password_file)))
        made.pins.begin()
        return made

    @classmethod
    def open(cls, path: Path, password_file: Path) -> Repository:
        """Open a repository. Raises `NotFoundError`, `DeniedError` for a wrong password, `CorruptError`."""
        path = path.absolute()
        return cls(path, _native.Repository.open(path, _password(password_file)))

    def backup(
        self,
        image: Path,
        name: str,
        description: MachineDescription | None = None,
        progress: Progress | None = None,
    ) -> Copy:
        """Write a raw image or block device as a copy of the machine `name`.

        Without a description the firmware is detected. A device must not be written to meanwhile: give a snapshot.

        Raises `UsageError` for what is no disk image, `NotFoundError`, `ConflictError` when the image changed while
        it was read, `UnavailableError` when it cannot be read, `NoSpaceError`. There is no copy then.
        """
        if not is_name(name):
            raise UsageError(f"{name!r} cannot name a machine", hint="lower-case letters, digits, hyphens; at most 40")
        if description is None:
            description = MachineDescription(firmware=detect_firmware(image))
        text = description.model_dump_json().encode()
        with self.pins.locked(Lock.PACKS, alone=False):
            done = self._native.backup(image, name, text, progress or (lambda _read, _total: None))
        log.info("backed up %s as %s@%s: %d bytes added", image, name, done.id[:8], done.added)
        return self._copy(done.id, name, done.time, Note(machine=description, size=done.size, stored=done.stored))

    def listing(self, name: str | None = None) -> Listing:
        """The copies (of one machine), and what is damaged: one bad snapshot does not hide the others."""
        snapshots, damaged = self._native.snapshots()
        copies = []
        for snapshot in snapshots:
            if TAG not in snapshot.tags or (name is not None and snapshot.hostname != name):
                continue
            try:
                copies.append(self._copy(snapshot.id, snapshot.hostname, snapshot.time, self._note(snapshot)))
            except LivemountError as error:
                damaged.append(f"the snapshot {snapshot.id} of {self.path}: {error.message}")
        return Listing(copies, damaged)

    def copies(self, name: str | None = None) -> list[Copy]:
        """The copies (of one machine), newest last. What is damaged is logged."""
        listing = self.listing(name)
        for reason in listing.damaged:
            log.warning("%s", reason)
        return listing.copies

    def find(self, reference: str) -> Copy:
        """The copy that a reference names; see `choose`."""
        return choose(self.copies(), reference, str(self.path))

    def state(self) -> State:
        """What its copies depend on, without reading them: cheap. Raises `UnavailableError` when it is away."""
        try:
            config = (self.path / "config").read_bytes()
            snapshots = sorted(entry.name for entry in (self.path / "snapshots").iterdir())
        except OSError as error:
            raise UnavailableError(f"the repository {self.path} cannot be read: {error.strerror}") from error
        return State(hashlib.sha256(config).hexdigest(), hashlib.sha256("\n".join(snapshots).encode()).hexdigest())

    def check(self, read_percent: float = 0) -> CheckReport:
        """Check the structure, and of what copies need this part, in per cent, byte by byte; chosen by chance."""
        found = self._native.check(read_percent)
        return CheckReport(
            read_percent=read_percent,
            problems=[text for problem, text in found if problem],
            leftovers=[text for problem, text in found if not problem],
        )

    def forget(self, rules: Rules, name: str | None = None, *, plan_only: bool = False) -> list[Decision]:
        """Forget the copies (of one machine) that no rule keeps and nobody has pinned; oldest first.

        What they alone needed stays until `prune`. Raises `UsageError` for rules that keep no copy of a machine,
        `DeniedError` for an append-only repository, `ConflictError` while copies are being pinned, `CorruptError` for a
        damaged pin.
        """
        with self.pins.locked(Lock.PINS, alone=True):
            pins = self.pins.all()
            machines: defaultdict[str, dict[str, Copy]] = defaultdict(dict)
            for copy in self.copies(name):
                machines[copy.name][copy.id] = copy
            text = rules.model_dump_json(by_alias=True, exclude_none=True)
            decisions: list[Decision] = []
            for machine, copies in machines.items():
                before = len(decisions)
                for id, kept, reasons in self._native.retention(list(copies), text):
                    pinned = [pin.reason for pin in pins.get(id, [])]
                    decisions.append(Decision(copies[id], kept or bool(pinned), [*reasons, *pinned]))
                if not any(each.kept for each in decisions[before:]):
                    raise UsageError(f"these rules keep no copy of {machine}", hint="nothing was forgotten")
            decisions.sort(key=lambda each: each.copy.time)
            if not plan_only:
                self._native.forget([each.copy.id for each in decisions if not each.kept])
        return decisions

    def prune(self, *, plan_only: bool = False, max_unused: int = 5, keep_marked: timedelta = KEEP_MARKED) -> Pruned:
        """Give back the room that no copy needs; running mounts go on, backups wait.

        Packs are marked first, and deleted by a prune that finds them marked for `keep_marked`. `max_unused` is the
        part of the repository, in per cent, that may stay unused within packs that are needed.

        Raises `ConflictError` while a backup is made, `CorruptError` when what copies need cannot be told.
        """
        with self.pins.locked(Lock.PACKS, alone=True):
            done = self._native.prune(plan_only, max_unused, int(keep_marked.total_seconds()))
        return Pruned(marked=done.marked, deleted=done.deleted, repacked=done.repacked)

    def digest(self, copy: Copy) -> str:
        """SHA-256 of the bytes of a copy's disk, in hex; all of it is read."""
        return self._native.disk(copy.id, _disk_file(copy.name)).digest()

    def _note(self, snapshot: _native.Snapshot) -> Note:
        if not is_name(snapshot.hostname):
            raise CorruptError(f"{snapshot.hostname!r} cannot name a machine")
        if snapshot.description is not None:
            try:
                return Note.model_validate_json(snapshot.description)
            except ValidationError:
                log.info("the description of snapshot %s is not ours", snapshot.id)
        # restic's `tag`, `copy` and `rewrite` drop the description: the file in the snapshot tells the same.
        path = Path("/", snapshot.hostname, MACHINE_FILE)
        text = self._native.read_file(snapshot.id, path, MAX_DESCRIPTION)
        disk = self._native.disk(snapshot.id, _disk_file(snapshot.hostname))
        try:
            machine = MachineDescription.model_validate_json(text)
        except ValidationError as error:
            raise CorruptError(f"{path} does not describe a machine: {error}") from error
        return Note(machine=machine, size=disk.size, stored=disk.stored)

    def _copy(self, id: str, name: str, microseconds: int, note: Note) -> Copy:
        return Copy(
            id=id,
            name=name,
            time=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds),
            size=note.size,
            stored=note.stored,
            description=note.machine,
            source=str(SourceUri("restic", self.path, {"snapshot": id, "file": str(_disk_file(name))})),
        )


def choose(everything: list[Copy], reference: str, place: str) -> Copy:
    """The copy of the repository `place` that `NAME`, `NAME@latest` or `NAME@ID` (the first digits of it) names.

    Raises `NotFoundError` that lists what there is, `ConflictError` when several copies fit.
    """
    name, _, which = reference.partition("@")
    if not is_name(name) or ("@" in reference and not which):
        raise UsageError(f"{reference!r} names no copy", hint="NAME, NAME@latest or NAME@ID")
    copies = [copy for copy in everything if copy.name == name]
    if not copies:
        names = ", ".join(sorted({copy.name for copy in everything})) or "none"
        raise NotFoundError(f"{place} has no copy of {name}", hint=f"machines with copies: {names}")
    if which in ("", "latest"):
        return copies[-1]
    fitting = [copy for copy in copies if copy.id.startswith(which.lower())]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{copy.id[:12]} of {copy.time:%Y-%m-%d %H:%M:%S}" for copy in fitting or copies)
    if fitting:
        raise ConflictError(f"{reference} names {len(fitting)} copies", hint=f"give more digits: {listed}")
    raise NotFoundError(f"{place} has no copy {reference}", hint=f"copies of {name}: {listed}")


def _disk_file(name: str) -> Path:
    return Path("/", name, DISK_FILE)


def _password(file: Path) -> str:
    password = read_secret(file)
    if not password:
        raise UsageError(f"the password file {file} is empty")
    return password
