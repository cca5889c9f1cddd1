"""A repository of copies, in restic's format (version 2), in a local folder or elsewhere.

A copy is a snapshot with the tag `livemount`, its host name the machine's name: `/NAME/disk0.raw`, `/NAME/disk1.raw`
and so on, and `/NAME/machine.json`. A backup leaves a whole snapshot or none; readers need no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ConfigDict, Field, ValidationError

from livemount import _native
from livemount.core.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from livemount.core.machine import Copy, CopyDisk, DiskDescription, DiskKind, Frozen, MachineDescription, is_name
from livemount.core.secrets import read_password
from livemount.media.detect import detect, detect_firmware
from livemount.media.disks import BITMAP, Changes, DiskInput, OpenDisk, disk_file, opened, with_data
from livemount.media.notes import pins_of
from livemount.media.pins import Lock, Pins, tolerant_of_read_only
from livemount.media.registry import SourceUri

log = logging.getLogger(__name__)

TAG = "livemount"
MACHINE_FILE = "machine.json"
FILES_FOLDER = "files0"
EMPTIED = ("proc", "sys", "dev", "run", "tmp")
"""Folders of a system's root whose content is not of the machine's disk; they themselves are copied."""
MAX_DESCRIPTION = 1 << 20

KEEP_MARKED = timedelta(hours=23)
"""How long a pack stays after it was marked: longer than any backup by a program that knows nothing of our locks."""

CHECKPOINT = 1 << 30
"""Bytes of packs after which a backup notes what it has stored: at most so much is read again after a kill."""

Progress = Callable[[int, int], object]
"""Called some ten times a second with the bytes read and the bytes to read; what it raises ends the backup."""


class Note(Frozen):
    """What a snapshot's description tells, so that a list of copies needs no index."""

    machine: MachineDescription
    size: int = Field(gt=0)
    stored: int = Field(ge=0)
    disks: tuple[int, ...] = ()
    """Of each disk what is stored; empty where there is one, in copies of earlier versions."""


class Wanted(Frozen):
    """How a copy is to be made."""

    boot: int = 0
    """The number of the disk that the machine starts from."""
    since: str | None = None
    """The copy that a dirty bitmap begins with, where its name does not tell."""
    read_all: bool = False
    """Read all of each disk, also what is known not to have changed."""
    verify: bool = False
    """Read all of each disk when the copy is made, and compare."""
    detect_firmware: bool = False
    """Whatever the description says."""
    tags: tuple[str, ...] = ()
    checkpoint: int = CHECKPOINT


PLAIN = Wanted()


@dataclass(frozen=True)
class Made:
    """A copy that was made, and what it took. Bytes."""

    copy: Copy
    read: int
    """Read from the disks, without those of `verify`."""
    added: int
    """Added to the repository."""


class Copied(Frozen):
    """A copy that is in another repository as well."""

    copy_id: str
    """Its id there: its content is encrypted with another key."""
    now: bool
    """Whether it was not there before."""


@dataclass(frozen=True)
class Auxiliary:
    """What copying to another repository did. Bytes."""

    copies: list[Copied]
    read: int
    """Of chunks that the other did not have."""
    added: int
    """Added to the other repository."""


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

    def __init__(self, place: Path | str, native: _native.Repository) -> None:
        self.place = place
        """Its folder, or its URI."""
        self.pins: Pins = pins_of(place, native)
        self._native = native

    @classmethod
    def init(cls, place: Path | str, password_file: Path, *, append_only: bool = False) -> Repository:
        """Make a new, encrypted repository: in an empty or missing folder, or where a URI names a place without any.

        From one that is `append_only` nothing is ever removed.

        Raises `ConflictError` when something is there, `DeniedError` for a bad password file or wrong keys,
        `UsageError` for a malformed URI, `NotFoundError` for a missing bucket, `UnavailableError`.
        """
        place = _absolute(place)
        made = cls(place, _native.Repository.init(place, *read_password(password_file), append_only))
        made.pins.begin()
        return made

    @classmethod
    def open(cls, place: Path | str, password_file: Path) -> Repository:
        """Open a repository, by its folder or its URI.

        Raises `NotFoundError`, `DeniedError` for a wrong password or wrong keys, `CorruptError`, `UnavailableError`,
        `UsageError` for a malformed URI.
        """
        place = _absolute(place)
        return cls(place, _native.Repository.open(place, *read_password(password_file)))

    @property
    def path(self) -> Path:
        """Its folder. Raises `UnsupportedError` for one that is elsewhere."""
        if isinstance(self.place, str):
            raise UnsupportedError(f"{self.place} is not a folder")
        return self.place

    def backup(
        self,
        image: Path,
        name: str,
        description: MachineDescription | None = None,
        progress: Progress | None = None,
    ) -> Copy:
        """Write a raw image or block device as a copy of the machine `name`: `make` with one disk."""
        return self.make([DiskInput(image)], name, description, progress).copy

    def make(
        self,
        inputs: Sequence[DiskInput],
        name: str,
        description: MachineDescription | None = None,
        progress: Progress | None = None,
        wanted: Wanted = PLAIN,
    ) -> Made:
        """Write a machine's disks as one copy. Its `description` is completed by the disks.

        Without a description, or where it is asked for, the firmware is detected. A device must not be written to
        meanwhile: give a snapshot. What an earlier copy is known to have, by a list of changes or because a file is as
        it was, is not read. A backup that was killed goes on where it was when it is asked for again.

        Raises `UsageError` for what is no disk image, `NotFoundError`, `ConflictError` when an image changed while
        it was read or a list of changes does not fit, `UnavailableError` when a disk cannot be read, `NoSpaceError`,
        `CorruptError` when `verify` finds a difference. There is no copy then.
        """
        if not is_name(name):
            raise UsageError(f"{name!r} cannot name a machine", hint="lower-case letters, digits, hyphens; at most 40")
        inputs = list(inputs)
        if not 0 <= wanted.boot < len(inputs):
            raise UsageError(f"there is no disk {wanted.boot} to start from: there are {len(inputs)}")
        progress = progress or (lambda _read, _total: None)
        with opened(inputs) as disks:
            described = self._described(inputs, disks, description, wanted)
            with self.pins.locked(Lock.PACKS, alone=False):
                disks = [
                    with_data(self._since(disk, given.changes, name, wanted))
                    for disk, given in zip(disks, inputs, strict=True)
                ]
                with self._journal(name, disks) as journal:
                    done = self._native.backup(
                        name,
                        described.model_dump_json().encode(),
                        disks,
                        wanted.tags,
                        journal,
                        wanted.checkpoint,
                        progress,
                    )
                    if journal is not None:
                        journal.unlink()
                if wanted.verify:
                    self._verify(done.id, name, disks, progress)
        log.info("backed up %s@%s: %d bytes read, %d added", name, done.id[:8], done.read, done.added)
        note = Note(
            machine=described,
            size=sum(disk.size for disk in disks),
            stored=sum(done.stored),
            disks=tuple(done.stored),
        )
        return Made(self._copy(done.id, name, done.time, note, done.added), done.read, done.added)

    def make_files(
        self,
        root: Path,
        name: str,
        description: MachineDescription | None = None,
        progress: Progress | None = None,
        tags: Sequence[str] = (),
        *,
        across: bool = False,
    ) -> Made:
        """Write the files below a folder as a copy: a mount makes a disk of them.

        Of one file system, unless `across` says that those mounted in it belong to it.

        Files that the last copy has as they are now are not read. Raises what `make` raises: of a file that cannot be
        read as well.
        """
        if not is_name(name):
            raise UsageError(f"{name!r} cannot name a machine", hint="lower-case letters, digits, hyphens; at most 40")
        described = description or MachineDescription()

        def describe(size: int) -> bytes:
            nonlocal described
            disk = DiskDescription(file=FILES_FOLDER, size=max(size, 1), kind=DiskKind.FILES, boot=True)
            described = described.model_copy(update={"disks": (disk,), "tags": (*described.tags, *tags)})
            return described.model_dump_json().encode()

        with self.pins.locked(Lock.PACKS, alone=False):
            copies = [copy for copy in self.copies(name) if copy.disks[copy.boot].file == FILES_FOLDER]
            done = self._native.backup_files(
                root.absolute(),
                name,
                list(tags),
                [Path(folder) for folder in EMPTIED],
                across,
                copies[-1].id if copies else None,
                describe,
                progress or (lambda _read, _total: None),
            )
        log.info("backed up %s@%s: %d bytes read, %d added", name, done.id[:8], done.read, done.added)
        stored = tuple(done.stored)
        note = Note(machine=described, size=described.disks[0].size, stored=sum(stored), disks=stored)
        return Made(self._copy(done.id, name, done.time, note, done.added), done.read, done.added)

    def _described(
        self, inputs: list[DiskInput], disks: list[OpenDisk], description: MachineDescription | None, wanted: Wanted
    ) -> MachineDescription:
        if description is None or wanted.detect_firmware:
            disk = disks[wanted.boot]
            firmware = (
                detect(disk.source.read, disk.size).firmware
                if disk.source is not None
                else detect_firmware(Path(inputs[wanted.boot].place))
            )
            description = (description or MachineDescription()).model_copy(update={"firmware": firmware})
        told = tuple(
            disk.describe(given, boot=number == wanted.boot)
            for number, (disk, given) in enumerate(zip(disks, inputs, strict=True))
        )
        return description.model_copy(update={"disks": told, "tags": (*description.tags, *wanted.tags)})

    def _since(self, disk: OpenDisk, changes: Changes | None, name: str, wanted: Wanted) -> OpenDisk:
        """The disk with what an earlier copy has of it."""
        if changes is not None and disk.bitmap:
            raise UsageError(f"{disk.file} has both a list of changes and a dirty bitmap")
        if wanted.read_all:
            return disk
        if changes is not None:
            return disk.since(self._base(changes.since, name), changes.ranges)
        if disk.bitmap:
            named = BITMAP.fullmatch(disk.bitmap)
            if named is None and wanted.since is None:
                raise UsageError(
                    f"the name of the dirty bitmap {disk.bitmap} does not tell the copy it begins with",
                    hint="name that copy by --since, or call the bitmap livemount-ID",
                )
            base = self._base(named[1] if named else str(wanted.since), name)
            if named and wanted.since is not None and self._base(wanted.since, name) != base:
                raise UsageError(f"the dirty bitmap {disk.bitmap} does not begin with {wanted.since}")
            return disk.since(base, disk.tracked())
        if not disk.origin:
            return disk
        copies = self.copies(name)
        before = {told.file: told for told in copies[-1].description.disks} if copies else {}
        same = disk.file in before and before[disk.file].origin == disk.origin
        return disk.since(copies[-1], ()) if same else disk

    def _base(self, since: str, name: str) -> Copy:
        """The copy that a list of changes is relative to."""
        copy = self.find(since if "@" in since or since == name else f"{name}@{since}")
        if copy.name != name:
            raise UsageError(f"{since} is no copy of {name}")
        return copy

    def _verify(self, id: str, name: str, disks: list[OpenDisk], progress: Progress) -> None:
        """Compare each disk with its copy; one that differs is forgotten."""
        try:
            for disk in disks:
                whole = with_data(replace(disk, base=None))
                self._native.verify(id, Path("/", name, disk.file), whole, progress)
        except CorruptError as error:
            kept = self._native.append_only
            if not kept:
                self._native.forget([id])
            raise CorruptError(
                f"{error.message}; the copy {name}@{id[:8]} {'is wrong, and stays' if kept else 'was forgotten'}",
                hint="where a list of changes was given, it was not of this disk since that copy: leave it out",
            ) from error

    @contextlib.contextmanager
    def _journal(self, name: str, disks: list[OpenDisk]) -> Iterator[Path | None]:
        """Where to note what is stored of these disks: nowhere when nothing names their content, or in use."""
        if not all(disk.origin for disk in disks):
            yield None
            return
        facts = [(disk.origin, disk.size) for disk in disks]
        folder = self.pins.unfinished
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / hashlib.sha256(repr((name, facts)).encode()).hexdigest()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Another backup may have come to its end, and removed it, before it was locked.
                mine = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
            except BlockingIOError:
                mine = False
            yield path if mine else None
        except BaseException:
            if path.exists() and path.stat().st_size == 0:
                path.unlink()
            raise
        finally:
            os.close(descriptor)

    def listing(self, name: str | None = None) -> Listing:
        """The copies (of one machine), and what is damaged: one bad snapshot does not hide the others."""
        snapshots, damaged = self._native.snapshots()
        copies = []
        for snapshot in snapshots:
            if TAG not in snapshot.tags or (name is not None and snapshot.hostname != name):
                continue
            try:
                copies.append(
                    self._copy(snapshot.id, snapshot.hostname, snapshot.time, self._note(snapshot), snapshot.added)
                )
            except LivemountError as error:
                damaged.append(f"the snapshot {snapshot.id} of {self.place}: {error.message}")
        return Listing(copies, damaged)

    def copies(self, name: str | None = None) -> list[Copy]:
        """The copies (of one machine), newest last. What is damaged is logged."""
        listing = self.listing(name)
        for reason in listing.damaged:
            log.warning("%s", reason)
        return listing.copies

    def find(self, reference: str) -> Copy:
        """The copy that a reference names; see `choose`."""
        return choose(self.copies(), reference, str(self.place))

    def state(self) -> State:
        """What its copies depend on, without reading them: cheap. Raises `UnavailableError` when it is away."""
        config, snapshots = self._native.state()
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
        self._must_forget()
        with self.pins.locked(Lock.PINS, alone=True) as held:
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
                for each in decisions:
                    if not each.kept:
                        held()
                        self._native.forget([each.copy.id])
        return decisions

    def _must_forget(self) -> None:
        if self._native.append_only:
            raise DeniedError(
                f"{self.place} is append-only: nothing in it is forgotten or pruned",
                hint="to give back its room, `livemount copy` what is to stay to a new repository",
            )

    def prune(self, *, plan_only: bool = False, max_unused: int = 5, keep_marked: timedelta = KEEP_MARKED) -> Pruned:
        """Give back the room that no copy needs, killed backups' as well; running mounts go on, backups wait.

        Packs are marked first, and deleted by a prune that finds them marked for `keep_marked`. `max_unused` is the
        part of the repository, in per cent, that may stay unused within packs that are needed.

        Raises `ConflictError` while a backup is made, `CorruptError` when what copies need cannot be told,
        `DeniedError` for an append-only repository.
        """
        self._must_forget()
        with self.pins.locked(Lock.PACKS, alone=True):
            done = self._native.prune(plan_only, max_unused, int(keep_marked.total_seconds()))
            if not plan_only:
                # What they name was marked just now.
                for journal in self.pins.unfinished.glob("*"):
                    journal.unlink()
        return Pruned(marked=done.marked, deleted=done.deleted, repacked=done.repacked)

    def copy_to(
        self,
        other: Repository,
        copies: Sequence[Copy],
        progress: Progress | None = None,
        checkpoint: int = CHECKPOINT,
    ) -> Auxiliary:
        """Copy copies, with all that they need and is not there, to another repository; what is there stays as it is.

        Each keeps its name, time and description. Every chunk is checked before it is written. Killed, it goes on where
        it was when it is asked for again: what was written is named in an index after each `checkpoint` bytes.

        Raises `ConflictError` for one and the same repository or while one of them is pruned, `CorruptError` for a copy
        that is damaged, `NotFoundError`, `UnavailableError`, `NoSpaceError`. None of the copies is there then.
        """
        if self.state().identity == other.state().identity:
            raise ConflictError(f"{self.place} and {other.place} are the same repository")
        with contextlib.ExitStack() as stack:
            with tolerant_of_read_only(self.place, "it must not be pruned meanwhile"):
                stack.enter_context(self.pins.locked(Lock.PACKS, alone=False))
            stack.enter_context(other.pins.locked(Lock.PACKS, alone=False))
            done = self._native.copy_to(
                other._native, [copy.id for copy in copies], checkpoint, progress or (lambda _read, _total: None)
            )
        log.info("copied %d copies to %s: %d bytes added", len(copies), other.place, done.added)
        return Auxiliary([Copied(copy_id=id, now=now) for id, now in done.snapshots], done.read, done.added)

    def digest(self, copy: Copy, disk: int | None = None) -> str:
        """SHA-256 of the bytes of a copy's disk (the one it starts from), in hex; all of it is read."""
        file = copy.disks[copy.boot if disk is None else disk].file
        if file == FILES_FOLDER:
            raise UnsupportedError(f"{copy.name}@{copy.id[:8]} is a copy of files: it has no disk to digest")
        return self._native.disk(copy.id, Path("/", copy.name, file)).digest()

    def _note(self, snapshot: _native.Snapshot) -> Note:
        if not is_name(snapshot.hostname):
            raise CorruptError(f"{snapshot.hostname!r} cannot name a machine")
        if snapshot.description is not None:
            try:
                note = Note.model_validate_json(snapshot.description)
                if len(note.disks) == len(note.machine.disks):
                    return note
            except ValidationError:
                log.info("the description of snapshot %s is not ours", snapshot.id)
        # restic's `tag`, `copy` and `rewrite` drop the description: the file in the snapshot tells the same.
        path = Path("/", snapshot.hostname, MACHINE_FILE)
        text = self._native.read_file(snapshot.id, path, MAX_DESCRIPTION)
        try:
            machine = MachineDescription.model_validate_json(text)
        except ValidationError as error:
            raise CorruptError(f"{path} does not describe a machine: {error}") from error
        files = [disk.file for disk in machine.disks] or [disk_file(0)]
        if any(disk.kind is DiskKind.FILES for disk in machine.disks):
            sizes = stored = [disk.size for disk in machine.disks]
        else:
            disks = [self._native.disk(snapshot.id, Path("/", snapshot.hostname, file)) for file in files]
            sizes, stored = [disk.size for disk in disks], [disk.stored for disk in disks]
        return Note(
            machine=machine,
            size=sum(sizes),
            stored=sum(stored),
            disks=tuple(stored) if machine.disks else (),
        )

    def _uri(self, snapshot: str, path: str, kind: DiskKind) -> SourceUri:
        options = {"snapshot": snapshot, "path" if kind is DiskKind.FILES else "file": path}
        scheme = "files" if kind is DiskKind.FILES else "restic"
        if isinstance(self.place, Path):
            return SourceUri(scheme, self.place, options)
        there = SourceUri.parse(self.place, host=True)
        return replace(there, scheme=there.scheme.replace("restic", scheme, 1), options=options)

    def _copy(self, id: str, name: str, microseconds: int, note: Note, added: int | None) -> Copy:
        told = note.machine.disks or (DiskDescription(file=disk_file(0), size=note.size, boot=True),)
        disks = tuple(
            CopyDisk(
                file=disk.file,
                size=disk.size,
                stored=stored,
                boot=disk.boot,
                source=str(self._uri(id, f"/{name}/{disk.file}", disk.kind)),
            )
            for disk, stored in zip(told, note.disks or (note.stored,), strict=True)
        )
        return Copy(
            id=id,
            name=name,
            time=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds),
            size=note.size,
            stored=note.stored,
            description=note.machine,
            source=next((disk.source for disk in disks if disk.boot), disks[0].source),
            disks=disks,
            added=added,
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


def _absolute(place: Path | str) -> Path | str:
    if "://" in str(place):
        return str(place)
    return Path(place).absolute()
