"""The report: of each policy and machine the last success and failure, what is late, how many copies, how they grow.

Copies tell what there is, jobs how it went. A success whose copy is gone is none: what counts is what can be mounted.
"""

from __future__ import annotations

import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from livemount.catalog.api import Warn, known_copies, open_catalog
from livemount.catalog.catalog import Job, JobKind, Outcome
from livemount.core.errors import LivemountError
from livemount.core.machine import Copy, Frozen
from livemount.core.settings import Settings
from livemount.media.repository import Repository
from livemount.policies.applied import Applied, open_policies
from livemount.policies.policy import Purpose
from livemount.policies.run import made_by
from livemount.policies.schedule import due_after, last_due

BACKUPS = (JobKind.BACKUP, JobKind.FORGET)
"""Kinds of jobs that are of one machine."""


class Run(Frozen):
    """A job that is over."""

    time: datetime
    """When it began."""
    outcome: Outcome
    reason: str


class Day(Frozen):
    """What was made on a day, in UTC. Bytes."""

    date: date
    backups: int
    added: int
    """To the repository, by those that tell; also by those whose copies are forgotten."""
    stored: int | None
    """In use on the disks, in the day's last copy that is still there."""


class Entry(Frozen):
    """The backups of a machine by one policy in force, or by no policy in force."""

    machine: str
    policy: str | None
    run_by: str | None
    """The environment whose manager runs the policy: `HOST:FOLDER`."""
    suspended: bool
    late: bool
    """There is no copy that was begun at the time `wanted` or later."""
    wanted: datetime | None
    """The last time that was due and is past for longer than is allowed; `None`: there is none since it is in force."""
    next: datetime | None
    last_success: datetime | None
    age_seconds: float | None
    """Since the last success."""
    last_copy: str | None
    """`NAME@ID` of it."""
    last_failure: Run | None
    """Of a backup, or of forgetting by the policy's rules."""
    failing: bool
    """That failure came after the last success of its kind."""
    running_since: datetime | None
    copies: int | None
    """`None`, as all below: the repository could not be read, or the policy is another machine's."""
    held: int | None
    """Of these, by mounts or `livemount hold`."""
    size: int | None
    """Bytes of the newest copy's disks."""
    stored: int | None
    """Bytes in use of the newest copy's disks."""
    added: int | None
    """Bytes that the copies added to the repository, those that tell."""
    growth: list[Day]
    """The days on which something was made."""


class Upkeep(Frozen):
    """A check or prune that a policy wants."""

    policy: str
    purpose: Purpose
    late: bool
    wanted: datetime | None
    next: datetime | None


class Report(Frozen):
    """What there is, at one time."""

    time: datetime
    repository: str
    problem: str | None
    """Why the repository's copies are not known: jobs alone tell then."""
    entries: list[Entry]
    upkeep: list[Upkeep]
    last_check: Run | None
    last_prune: Run | None
    jobs: dict[str, dict[str, int]]
    """How many the catalog knows, by kind and outcome (`running` is one)."""

    @property
    def late(self) -> list[str]:
        """What is late, in words."""
        since = {
            entry.policy: f"no copy since {entry.last_success:%Y-%m-%d %H:%M} UTC" if entry.last_success else "no copy"
            for entry in self.entries
            if entry.late
        }
        found = [f"{policy}: {text}" for policy, text in since.items()]
        return found + [f"{each.purpose} of {each.policy}" for each in self.upkeep if each.late]


@dataclass(frozen=True)
class _Known:
    """What an entry is made of."""

    machine: str
    applied: Applied | None
    copies: list[Copy] | None
    made: list[Job]
    """Backups that are done, of the days that are looked at."""
    latest: list[Job]
    """The newest backups, and times that copies were forgotten, of each outcome."""


def make_report(settings: Settings, warn: Warn, grace: timedelta, days: int, now: datetime | None = None) -> Report:
    """The report as of now. A backup may end `grace` after it was due; growth is told of the last `days`.

    `warn` is told of policies that are refused and of damaged copies. Raises what the catalog raises.
    """
    now = now or datetime.now(UTC)
    place = str(settings.repository_path)
    with open_policies(settings) as policies:
        applied = {each.policy.name: each for each in policies.all(warn)}
    copies, held, problem = _copies(settings, warn)
    since = now - timedelta(days=days)
    with open_catalog(settings) as catalog:
        latest = catalog.latest()
        made = [job for job in catalog.jobs(kind=JobKind.BACKUP, since=since) if job.outcome is Outcome.DONE]
        counts = catalog.counts()
    there = None if copies is None else {copy.id for copy in copies}
    backups = [job for job in latest if job.kind in BACKUPS and not _is_gone(job, place, there)]
    here = [job for job in latest if job.location == place]
    return Report(
        time=now,
        repository=place,
        problem=problem,
        entries=[_entry(known, held, since, grace, now) for known in _known(applied, copies, made, backups, place)],
        upkeep=[each for policy in applied.values() for each in _upkeep(policy, latest, place, grace, now)],
        last_check=_run(_newest(job for job in here if job.kind is JobKind.CHECK and job.outcome)),
        last_prune=_run(_newest(job for job in here if job.kind is JobKind.PRUNE and job.outcome)),
        jobs=counts,
    )


def _copies(settings: Settings, warn: Warn) -> tuple[list[Copy] | None, set[str], str | None]:
    try:
        repository = Repository.open(settings.repository_path, settings.repository_password)
        copies = known_copies(settings, repository, warn)
    except LivemountError as error:
        return None, set(), str(error)
    try:
        return copies, set(repository.pins.all()), None
    except LivemountError as error:
        warn(str(error))
        return copies, set(), None


def _is_gone(job: Job, place: str, there: set[str] | None) -> bool:
    """Whether a job's copy is no longer in the repository that was looked at: another machine's may lie likewise."""
    if (
        job.kind is not JobKind.BACKUP
        or there is None
        or job.location != place
        or job.host not in (None, socket.gethostname())
    ):
        return False
    return job.outcome is Outcome.DONE and job.copy_id not in there


def _known(
    applied: dict[str, Applied], copies: list[Copy] | None, made: list[Job], latest: list[Job], place: str
) -> Iterator[_Known]:
    """What is known by machine and policy in force, in their order."""
    by: dict[tuple[str, str], list[Copy]] = defaultdict(list)
    for copy in copies or []:
        policy = applied.get(made_by(copy) or "")
        by[copy.name, policy.policy.name if policy and policy.policy.machine == copy.name else ""].append(copy)
    jobs: dict[tuple[str, str], tuple[list[Job], list[Job]]] = defaultdict(lambda: ([], []))
    for number, known in enumerate((made, latest)):
        for job in known:
            policy = applied.get(job.policy or "")
            if job.machine is not None and policy is not None and policy.policy.machine == job.machine:
                jobs[job.machine, policy.policy.name][number].append(job)
            elif job.machine is not None and job.location == place:
                jobs[job.machine, ""][number].append(job)
    keys = {*by, *jobs, *((each.policy.machine, name) for name, each in applied.items())}
    for machine, name in sorted(keys):
        found = None if copies is None else by[machine, name]
        policy = applied.get(name)
        if not found and policy is not None and not _is_here(policy):
            found = None
        yield _Known(machine, policy, found, *jobs[machine, name])


def _entry(known: _Known, held: set[str], since: datetime, grace: timedelta, now: datetime) -> Entry:
    applied, copies = known.applied, known.copies
    name = applied.policy.name if applied else None
    ended = [job for job in known.latest if job.outcome is Outcome.DONE]
    done = [(job.started, job.copy_id) for job in ended if job.kind is JobKind.BACKUP]
    done += [(copy.time, copy.id) for copy in copies or []]
    success = max(done, default=None, key=lambda each: each[0])
    failure = _newest(job for job in known.latest if job.outcome in (Outcome.FAILED, Outcome.CRASHED))
    since_then = [job.started for job in ended if failure and job.kind is failure.kind]
    since_then += [copy.time for copy in copies or [] if failure and failure.kind is JobKind.BACKUP]
    running = _newest(job for job in known.latest if job.outcome is None and job.kind is JobKind.BACKUP)
    wanted = _wanted(applied, applied.policy.when, grace, now) if applied else None
    newest = copies[-1] if copies else None
    return Entry(
        machine=known.machine,
        policy=name,
        run_by=applied.runner if applied else None,
        suspended=applied is not None and applied.suspended,
        late=wanted is not None and (success is None or success[0] < wanted),
        wanted=wanted,
        next=_next(applied, applied.policy.when, now) if applied else None,
        last_success=success[0] if success else None,
        age_seconds=(now - success[0]).total_seconds() if success else None,
        last_copy=f"{known.machine}@{success[1][:8]}" if success and success[1] else None,
        last_failure=_run(failure),
        failing=failure is not None and all(time < failure.started for time in since_then),
        running_since=running.started if running else None,
        copies=None if copies is None else len(copies),
        held=None if copies is None else sum(copy.id in held for copy in copies),
        size=newest.size if newest else None,
        stored=newest.stored if newest else None,
        added=None if copies is None else sum(copy.added or 0 for copy in copies),
        growth=_growth(known, since),
    )


def _growth(known: _Known, since: datetime) -> list[Day]:
    made = {job.copy_id or job.id: (job.started, job.bytes or 0) for job in known.made}
    stored: dict[date, int] = {}
    for copy in known.copies or []:
        if copy.time >= since:
            made[copy.id] = (copy.time, copy.added or 0)
            stored[copy.time.astimezone(UTC).date()] = copy.stored
    days: dict[date, list[int]] = defaultdict(list)
    for time, added in made.values():
        days[time.astimezone(UTC).date()].append(added)
    return [
        Day(date=day, backups=len(counts), added=sum(counts), stored=stored.get(day))
        for day, counts in sorted(days.items())
    ]


def _upkeep(applied: Applied, latest: list[Job], place: str, grace: timedelta, now: datetime) -> Iterator[Upkeep]:
    # A check or prune is of the whole repository: whoever made it, it counts.
    places = {job.location for job in latest if job.policy == applied.policy.name}
    if _is_here(applied):
        places.add(place)
    for purpose, when in applied.policy.times().items():
        if purpose is Purpose.BACKUP:
            continue
        wanted = _wanted(applied, when, grace, now)
        done = [
            job.started
            for job in latest
            if job.kind == purpose.value and job.outcome is Outcome.DONE and job.location in places
        ]
        yield Upkeep(
            policy=applied.policy.name,
            purpose=purpose,
            late=wanted is not None and (not done or max(done) < wanted),
            wanted=wanted,
            next=_next(applied, when, now),
        )


def _is_here(applied: Applied) -> bool:
    return applied.runner.partition(":")[0] == socket.gethostname()


def _wanted(applied: Applied, when: str, grace: timedelta, now: datetime) -> datetime | None:
    due = last_due(when, applied.policy.time_zone, now - grace)
    return None if applied.suspended or due <= applied.since else due


def _next(applied: Applied, when: str, now: datetime) -> datetime | None:
    return None if applied.suspended else due_after(when, applied.policy.time_zone, now)


def _newest(jobs: Iterable[Job]) -> Job | None:
    return max(jobs, default=None, key=lambda job: job.started)


def _run(job: Job | None) -> Run | None:
    if job is None or job.outcome is None:
        return None
    return Run(time=job.started, outcome=job.outcome, reason=job.reason)
