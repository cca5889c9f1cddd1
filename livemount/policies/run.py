"""What a policy does when its time has come; each part is noted as a job."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from livemount.catalog.api import Warn, recorded
from livemount.catalog.catalog import JobKind
from livemount.core.errors import ConflictError, CorruptError, NotFoundError, UnavailableError
from livemount.core.machine import Copy, Frozen
from livemount.core.settings import Settings
from livemount.inside.describe import described
from livemount.media.disks import DiskInput
from livemount.media.repository import Made, Progress, Repository, Wanted
from livemount.policies.policy import Policy, Purpose

LATE_SECONDS = 60
"""A run that begins so long after its time is called late."""
DUE = "%Y-%m-%dT%H:%M:%SZ"
"""How a copy's tag tells the time that was due."""


class Occasion(Frozen):
    """Why a policy runs."""

    purpose: Purpose
    due: datetime
    """When it should run; of one that was asked for, when that was."""
    scheduled: bool


@contextmanager
def alone(settings: Settings, policy: Policy) -> Iterator[None]:
    """Run a policy once at a time. Raises `ConflictError`."""
    lock = settings.home / "policies" / f"{policy.name}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"the policy {policy.name} runs already", hint="wait for its end") from error
        yield


def run(settings: Settings, policy: Policy, occasion: Occasion, job: str, warn: Warn) -> str:
    """Do what is due and say what was done. Begun again after a kill, with the same `job`, it makes no second copy.

    Raises what the repository's methods raise, `CorruptError` for a check that found something.
    """
    if occasion.purpose is Purpose.CHECK:
        return _check(settings, policy, occasion, job, warn)
    if occasion.purpose is Purpose.PRUNE:
        return _prune(settings, policy, occasion, job, warn)
    made = back_up(settings, policy, occasion, job, warn)
    return f"{policy.machine}@{made.copy.id[:8]}; {forget(settings, policy, job, warn)} older copies forgotten"


def tag(policy: Policy, occasion: Occasion) -> str:
    """The tag of the copy that is made at an occasion."""
    return f"{policy.name}@{occasion.due.astimezone(UTC):{DUE}}"


def made_by(copy: Copy) -> str | None:
    """The name of the policy that made a copy, as its tag tells."""
    for mark in reversed(copy.description.tags):
        policy, _, due = mark.rpartition("@")
        with contextlib.suppress(ValueError):
            datetime.strptime(due, DUE).replace(tzinfo=UTC)
            return policy
    return None


def _open(settings: Settings) -> Repository:
    try:
        return Repository.open(settings.repository_path, settings.repository_password)
    except NotFoundError as error:
        raise UnavailableError(error.message, hint="is its file system mounted?") from error


def _late(occasion: Occasion) -> str:
    late = (datetime.now(UTC) - occasion.due).total_seconds()
    return f" ({late / 60:.0f} min late)" if occasion.scheduled and late >= LATE_SECONDS else ""


def back_up(
    settings: Settings, policy: Policy, occasion: Occasion, job: str, warn: Warn, progress: Progress | None = None
) -> Made:
    """Make the copy of this occasion, or find it. Raises what `Repository.make` and `make_files` raise."""
    late = _late(occasion)
    due = occasion.due if occasion.scheduled else None
    with recorded(settings, JobKind.BACKUP, warn, policy.machine, policy.name, due, job) as ending:
        repository = _open(settings)
        mark = tag(policy, occasion)
        earlier = [copy for copy in repository.copies(policy.machine) if mark in copy.description.tags]
        try:
            made = Made(earlier[-1], 0, 0) if earlier else _make(repository, policy, (*policy.tags, mark), progress)
        except NotFoundError as error:
            if (folder := _unmounted(policy)) is None:
                raise
            raise UnavailableError(error.message, hint=f"{folder} is empty: is its file system mounted?") from error
        ending.reason = f"{policy.machine}@{made.copy.id[:8]}{late}"
        ending.copy_id, ending.bytes = made.copy.id, None if earlier else made.added
        return made


def _unmounted(policy: Policy) -> Path | None:
    """An empty folder where a source of the policy should be below: more likely not mounted than a wrong name."""
    for place in (*policy.disks, *([policy.files] if policy.files is not None else [])):
        folder = Path(place)
        while "://" not in place and not folder.exists() and folder != folder.parent:
            folder = folder.parent
            if folder.is_dir() and not any(folder.iterdir()):
                return folder
    return None


def _make(repository: Repository, policy: Policy, tags: tuple[str, ...], progress: Progress | None) -> Made:
    machine = policy.description.machine()
    if policy.files is not None:
        folder = Path(policy.files)
        if folder.is_dir() and not any(folder.iterdir()):
            raise UnavailableError(f"the folder {folder} is empty", hint="is its file system mounted?")
        return repository.make_files(folder, policy.machine, described(machine, DiskInput(folder)), progress, tags)
    wanted = Wanted(
        boot=policy.boot,
        since=policy.since,
        read_all=policy.read_all,
        verify=policy.verify,
        detect_firmware=policy.description.firmware is None,
        tags=tags,
    )
    inputs = [_input(place, policy.password_file) for place in policy.disks]
    machine = described(machine, inputs[policy.boot])
    return repository.make(inputs, policy.machine, machine, progress, wanted)


def _input(place: str, password_file: Path | None) -> DiskInput:
    return DiskInput(place, password_file) if "://" in place else DiskInput(Path(place))


def forget(settings: Settings, policy: Policy, job: str, warn: Warn) -> int:
    """Forget the copies of the policy's machine that its rules do not keep; returns how many."""
    if policy.keep is None:
        return 0
    with recorded(settings, JobKind.FORGET, warn, policy.machine, policy.name, None, f"{job}:forget") as ending:
        decisions = _open(settings).forget(policy.keep, policy.machine)
        gone = sum(not each.kept for each in decisions)
        ending.reason = f"{gone} of {len(decisions)} copies forgotten"
        return gone


def _check(settings: Settings, policy: Policy, occasion: Occasion, job: str, warn: Warn) -> str:
    sample = policy.check.sample if policy.check is not None else 0
    with recorded(settings, JobKind.CHECK, warn, None, policy.name, occasion.due, job) as ending:
        report = _open(settings).check(sample)
        if not report.ok:
            raise CorruptError(f"the repository is damaged: {'; '.join(report.problems)}")
        ending.reason = f"{sample:g} % of the data read{_late(occasion)}"
        return ending.reason


def _prune(settings: Settings, policy: Policy, occasion: Occasion, job: str, warn: Warn) -> str:
    unused = policy.prune.max_unused if policy.prune is not None else 5
    with recorded(settings, JobKind.PRUNE, warn, None, policy.name, occasion.due, job) as ending:
        done = _open(settings).prune(max_unused=unused)
        ending.bytes, ending.reason = done.deleted, f"{done.deleted} bytes deleted{_late(occasion)}"
        return ending.reason
