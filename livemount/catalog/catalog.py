"""The catalog of copies and jobs.

Copies are a cache: each answer is for the very list of snapshots that the repository has at that moment, and is read
from the repository itself when the catalog's is for another list. So a copy made or forgotten by anybody, with any
program, is seen at once, and the catalog can be lost. Jobs are only here.
"""

from __future__ import annotations

import hashlib
import json
import socket
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa

from livemount.catalog import tables
from livemount.catalog.database import Database
from livemount.core.errors import ConflictError, CorruptError, NotFoundError
from livemount.core.machine import Copy, Frozen
from livemount.core.processes import is_gone, this_process
from livemount.media.repository import Listing, Repository, State

_FORM = hashlib.sha256(json.dumps(Copy.model_json_schema(), sort_keys=True).encode()).hexdigest()[:16]
"""Of what form the copies are that this software keeps: those of another version are read again."""
TRIES = 20
"""How often a repository that changes while it is read is read again."""
BEAT = 30.0
"""Seconds between two signs of life of the process that does a job."""
SILENCE = 180.0
"""A process of another machine that gave no sign of life for so many seconds is taken for gone."""


class JobKind(StrEnum):
    """What is done."""

    BACKUP = "backup"
    COPY = "copy"
    FORGET = "forget"
    PRUNE = "prune"
    CHECK = "check"
    VERIFY = "verify"


class Outcome(StrEnum):
    """How it ended."""

    DONE = "done"
    FAILED = "failed"
    CRASHED = "crashed"
    """Its process is gone: killed, or the machine with it. Never noted, but seen when the job is looked at."""


class Job(Frozen):
    """One run of something, in the past or under way."""

    id: str
    kind: JobKind
    location: str
    """The repository's place."""
    machine: str | None = None
    policy: str | None = None
    due: datetime | None = None
    """When it should have begun; `None` for one that somebody asked for."""
    started: datetime
    ended: datetime | None = None
    outcome: Outcome | None = None
    """`None` while it runs."""
    reason: str = ""
    """Why it failed, or what it found."""
    copy_id: str | None = None
    """The copy that a backup made."""
    bytes: int | None = None
    """What a backup added, a prune deleted, a check read: of the repository."""
    host: str | None = None
    """The machine that does it."""


class Catalog:
    """An open catalog. May be used from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def listing(self, repository: Repository, name: str | None = None) -> Listing:
        """The copies of a repository (of one machine), oldest first, as they are now."""
        state = repository.state()
        with self._database.reading() as connection:
            known = connection.execute(_row(repository, state)).one_or_none()
            if known is not None and known.state == _key(state):
                wanted = sa.select(tables.copies.c.copy).where(tables.copies.c.repository == known.id)
                if name is not None:
                    wanted = wanted.where(tables.copies.c.machine == name)
                rows = connection.execute(wanted.order_by(tables.copies.c.place)).scalars()
                return Listing([Copy.model_validate_json(text) for text in rows], [])
        listing = self.refresh(repository)
        return Listing([copy for copy in listing.copies if name in (None, copy.name)], listing.damaged)

    def refresh(self, repository: Repository) -> Listing:
        """Read a repository anew and keep what it says. What is damaged is kept from being relied on."""
        for _ in range(TRIES):
            before = repository.state()
            try:
                listing = repository.listing()
            except CorruptError:
                # A snapshot that is forgotten between being listed and being read looks like one that is missing.
                if repository.state() == before:
                    raise
                continue
            if repository.state() == before:
                break
        else:
            raise ConflictError(f"the copies in {repository.place} change all the time", hint="try again")
        with self._database.writing() as connection:
            self._keep(connection, repository, before, listing)
        return listing

    def _keep(self, connection: sa.Connection, repository: Repository, state: State, listing: Listing) -> None:
        row = _row(repository, state)
        if self._database.url.get_backend_name() == "postgresql":
            # Of two that keep the same repository's copies, one waits: SQLite lets only one write anyway.
            number = int(hashlib.sha256(f"{state.identity} {repository.place}".encode()).hexdigest()[:15], 16)
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
        known = connection.execute(row).one_or_none()
        if known is None:
            place = {"location": str(repository.place), "identity": state.identity}
            connection.execute(sa.insert(tables.repositories).values(place))
            known = connection.execute(row).one()
        connection.execute(sa.delete(tables.copies).where(tables.copies.c.repository == known.id))
        if listing.copies:
            connection.execute(sa.insert(tables.copies), _rows(known.id, listing.copies))
        connection.execute(
            sa.update(tables.repositories)
            .where(tables.repositories.c.id == known.id)
            # What is damaged must be told each time, so it is read each time.
            .values(state=None if listing.damaged else _key(state), refreshed=datetime.now(UTC))
        )

    def begin(
        self,
        kind: JobKind,
        location: str,
        *,
        id: str | None = None,
        machine: str | None = None,
        policy: str | None = None,
        due: datetime | None = None,
    ) -> Job:
        """Note that a job begins. With the `id` of one that is noted already, that one begins again."""
        job = Job(
            id=id or uuid.uuid4().hex,
            kind=kind,
            location=location,
            machine=machine,
            policy=policy,
            due=due,
            started=datetime.now(UTC),
            host=socket.gethostname(),
        )
        with self._database.writing() as connection:
            connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id == job.id))
            fields = job.model_dump()
            fields["copy"] = fields.pop("copy_id")
            fields |= {"process": this_process(), "seen": self._database.now(connection)}
            connection.execute(sa.insert(tables.jobs).values(fields))
        return job

    def end(
        self, id: str, outcome: Outcome, reason: str = "", *, copy_id: str | None = None, bytes: int | None = None
    ) -> None:
        """Note how a job ended. Raises `NotFoundError`."""
        told = {"ended": datetime.now(UTC), "outcome": outcome, "reason": reason, "copy": copy_id, "bytes": bytes}
        with self._database.writing() as connection:
            done = connection.execute(sa.update(tables.jobs).where(tables.jobs.c.id == id).values(told))
            if done.rowcount != 1:
                raise NotFoundError(f"the catalog knows no job {id}")

    def beat(self, id: str) -> None:
        """Say that the process that does a job lives."""
        with self._database.writing() as connection:
            wanted = sa.update(tables.jobs).where(tables.jobs.c.id == id)
            connection.execute(wanted.values(seen=self._database.now(connection)))

    def jobs(
        self,
        *,
        machine: str | None = None,
        kind: JobKind | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> list[Job]:
        """The newest jobs (of one machine, of one kind, begun since a time), oldest first."""
        wanted = sa.select(tables.jobs).order_by(tables.jobs.c.started.desc(), tables.jobs.c.id).limit(limit)
        if machine is not None:
            wanted = wanted.where(tables.jobs.c.machine == machine)
        if kind is not None:
            wanted = wanted.where(tables.jobs.c.kind == kind)
        if since is not None:
            wanted = wanted.where(tables.jobs.c.started >= since)
        return self._jobs(wanted)

    def latest(self) -> list[Job]:
        """The newest job of each place, kind, machine, policy and outcome; of those that have not ended all."""
        column = tables.jobs.c
        of = (column.location, column.kind, column.machine, column.policy, column.outcome)
        place = sa.func.row_number().over(partition_by=of, order_by=(column.started.desc(), column.id)).label("place")
        ranked = sa.select(column.id, place).subquery()
        newest = sa.select(ranked.c.id).where(ranked.c.place == 1)
        return self._jobs(sa.select(tables.jobs).where(column.outcome.is_(None) | column.id.in_(newest)))

    def counts(self) -> dict[str, dict[str, int]]:
        """How many jobs there are, by kind and outcome; those that run have the outcome `running`."""
        column = tables.jobs.c
        ended = sa.select(column.kind, column.outcome, sa.func.count()).where(column.outcome.is_not(None))
        found: dict[str, dict[str, int]] = {str(kind): {} for kind in JobKind}
        with self._database.reading() as connection:
            for kind, outcome, count in connection.execute(ended.group_by(column.kind, column.outcome)):
                found.setdefault(kind, {})[outcome] = count
        for job in self._jobs(sa.select(tables.jobs).where(column.outcome.is_(None))):
            of = found[job.kind]
            of[job.outcome or "running"] = of.get(job.outcome or "running", 0) + 1
        return found

    def _jobs(self, wanted: sa.Select[Any]) -> list[Job]:
        with self._database.reading() as connection:
            rows = connection.execute(wanted).mappings().all()
            now = self._database.now(connection)
        return sorted((_job(row, now) for row in rows), key=lambda job: (job.started, job.id))


def _job(row: sa.RowMapping, now: datetime) -> Job:
    fields = dict(row)
    process, seen = fields.pop("process"), fields.pop("seen") or row["started"]
    job = Job(copy_id=fields.pop("copy"), **fields)
    if job.outcome is not None:
        return job
    gone = None if process is None else is_gone(process)
    if gone is False or (gone is None and (now - seen).total_seconds() < SILENCE):
        return job
    told = "its process is gone" if gone else f"{job.host or 'its process'} was not heard of since {seen.isoformat()}"
    return job.model_copy(update={"outcome": Outcome.CRASHED, "reason": told})


def _key(state: State) -> str:
    return f"{_FORM}.{state.snapshots}"


def _row(repository: Repository, state: State) -> sa.Select[tuple[int, str | None]]:
    table = tables.repositories.c
    wanted = sa.select(table.id, table.state)
    return wanted.where(table.location == str(repository.place), table.identity == state.identity)


def _rows(repository: int, copies: list[Copy]) -> list[dict[str, object]]:
    return [
        {
            "repository": repository,
            "id": copy.id,
            "place": place,
            "machine": copy.name,
            "time": copy.time,
            "size": copy.size,
            "stored": copy.stored,
            "copy": copy.model_dump_json(),
        }
        for place, copy in enumerate(copies)
    ]
