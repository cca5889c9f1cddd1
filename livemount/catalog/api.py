"""The catalog as others use it: the one that the settings name, and copies that are told even without it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import sqlalchemy as sa

from livemount.catalog.catalog import BEAT, Catalog, Job, JobKind, Outcome
from livemount.catalog.database import Database, database_url
from livemount.core.errors import CorruptError, LivemountError
from livemount.core.machine import Copy
from livemount.core.settings import Settings
from livemount.media.repository import Listing, Repository, choose

Warn = Callable[[str], object]
"""Called with a line for people."""


@contextmanager
def open_catalog(settings: Settings) -> Iterator[Catalog]:
    """The catalog that the settings name, made where there is none. Raises what `Database` raises."""
    with closing(Catalog(open_database(settings))) as catalog:
        yield catalog


def open_database(settings: Settings) -> Database:
    """The catalog's database, made where there is none. Raises what `Database` raises."""
    return Database(_url(settings))


def _url(settings: Settings) -> sa.URL:
    return database_url(settings.catalog_url, settings.catalog_password_file)


def known_copies(settings: Settings, repository: Repository, warn: Warn, name: str | None = None) -> list[Copy]:
    """The copies in a repository (of one machine), oldest first, by way of the catalog.

    `warn` is told of damaged copies, and of a catalog that cannot be used: the repository is read then.
    """
    listing = _listing(settings, repository, warn, name)
    for reason in listing.damaged:
        warn(reason)
    return listing.copies


def find_copy(settings: Settings, repository: Repository, warn: Warn, reference: str) -> Copy:
    """The copy that `NAME`, `NAME@latest` or `NAME@ID` names; as `Repository.find`, by way of the catalog."""
    return choose(known_copies(settings, repository, warn), reference, str(repository.place))


def _listing(settings: Settings, repository: Repository, warn: Warn, name: str | None) -> Listing:
    repository.state()  # what is wrong with the repository is not the catalog's fault
    try:
        with open_catalog(settings) as catalog:
            return catalog.listing(repository, name)
    except LivemountError as error:
        warn(f"{error}; the repository is read instead")
    return repository.listing(name)


@dataclass
class Ending:
    """How a job ends, unless it raises."""

    outcome: Outcome = Outcome.DONE
    reason: str = ""
    bytes: int | None = None
    copy_id: str | None = None


@contextmanager
def recorded(
    settings: Settings,
    kind: JobKind,
    warn: Warn | None,
    machine: str | None = None,
    policy: str | None = None,
    due: datetime | None = None,
    id: str | None = None,
) -> Iterator[Ending]:
    """Note in the catalog how a job begins and ends, and that its process lives; a catalog that cannot be used only
    leads to a warning.

    Without `warn` nothing is noted: for what only says what it would do.
    """
    ending = Ending()
    place = str(settings.repository_path)
    job = _noted(
        warn,
        settings,
        lambda catalog: catalog.begin(kind, place, id=id, machine=machine, policy=policy, due=due),
    )
    try:
        with _beating(settings, job):
            yield ending
    except BaseException as error:
        ending.outcome, ending.reason = Outcome.FAILED, str(error) or type(error).__name__
        raise
    finally:
        if job is not None:
            _noted(
                warn,
                settings,
                lambda catalog: catalog.end(
                    job.id, ending.outcome, ending.reason, copy_id=ending.copy_id, bytes=ending.bytes
                ),
            )


@contextmanager
def _beating(settings: Settings, job: Job | None) -> Iterator[None]:
    if job is None:
        yield
        return
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            # A catalog that is away is told of when the job ends.
            with suppress(LivemountError), open_catalog(settings) as catalog:
                catalog.beat(job.id)

    thread = threading.Thread(target=beat, name=f"beat of {job.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _noted(warn: Warn | None, settings: Settings, action: Callable[[Catalog], Job | None]) -> Job | None:
    if warn is None:
        return None
    try:
        with open_catalog(settings) as catalog:
            return action(catalog)
    except LivemountError as error:
        warn(f"{error}; the job is not noted")
        return None


def rebuild(settings: Settings, repository: Repository, warn: Warn) -> Listing:
    """Make the catalog's copies anew from the repository. A damaged SQLite file is put aside first, with its jobs."""
    try:
        with open_catalog(settings) as catalog:
            return catalog.refresh(repository)
    except CorruptError as error:
        warn(error.message)
        put_aside(Path(str(_url(settings).database)))
    with open_catalog(settings) as catalog:
        return catalog.refresh(repository)


def put_aside(path: Path) -> None:
    """Rename a SQLite file and what belongs to it to `NAME.damaged`."""
    for suffix in ("", "-wal", "-shm"):
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.replace(path.with_name(f"{path.name}.damaged{suffix}"))
