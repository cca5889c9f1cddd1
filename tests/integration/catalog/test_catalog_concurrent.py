"""Several processes use one catalog at once, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import multiprocessing
import random
import signal
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path

import pytest
import sqlalchemy as sa

from livemount.catalog import tables
from livemount.catalog.api import known_copies, open_catalog, open_database, rebuild, recorded
from livemount.catalog.catalog import SILENCE, JobKind, Outcome
from livemount.catalog.database import Database, database_url
from livemount.core.errors import DeniedError, UnavailableError
from livemount.core.secrets import write_secret
from livemount.core.settings import Settings
from livemount.media.repository import Repository, Rules
from tests.support.postgres import postgres_server

pytestmark = pytest.mark.integration

WRITERS = 3
ROUNDS = 2
CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server("horse staple") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    write_secret(tmp_path / "repository-password", "correct horse")
    if request.param == "sqlite":
        chosen = Settings(home=tmp_path)
    else:
        url = request.getfixturevalue("server")
        engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:").replace("@", ":horse staple@", 1))
        with engine.begin() as connection:
            connection.execute(sa.text("DROP SCHEMA public CASCADE"))
            connection.execute(sa.text("CREATE SCHEMA public"))
        engine.dispose()
        write_secret(tmp_path / "catalog-password", "horse staple")
        chosen = Settings(home=tmp_path, catalog=url, catalog_password_file=tmp_path / "catalog-password")
    Repository.init(chosen.repository_path, chosen.repository_password)
    return chosen


def fail(text: str) -> None:
    raise AssertionError(f"warned: {text}")


def write(chosen: Settings, number: int, start: Barrier) -> None:
    """One process: makes and forgets copies, looks at them, notes jobs; they all open the new catalog at once."""
    repository = Repository.open(chosen.repository_path, chosen.repository_password)
    disk = chosen.home / f"{number}.raw"
    start.wait(120)
    for turn in range(ROUNDS):
        disk.write_bytes(random.Random(number * 100 + turn).randbytes(16 << 10))
        copy = repository.backup(disk, f"m{number}")
        assert known_copies(chosen, repository, fail, f"m{number}")[-1] == copy
        if turn == ROUNDS - 1:
            repository.forget(Rules(keep_last=1), f"m{number}")
            assert known_copies(chosen, repository, fail, f"m{number}") == [copy]
        with open_catalog(chosen) as catalog:
            job = catalog.begin(JobKind.BACKUP, str(repository.path), machine=copy.name)
            catalog.end(job.id, Outcome.DONE, copy_id=copy.id)


def test_writers_at_once(place: Settings) -> None:
    start = CONTEXT.Barrier(WRITERS)
    writers = [CONTEXT.Process(target=write, args=(place, number, start)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(240)
    codes = [writer.exitcode for writer in writers]
    for writer in writers:
        writer.kill()
    assert codes == [0] * WRITERS
    repository = Repository.open(place.repository_path, place.repository_password)
    assert known_copies(place, repository, fail) == repository.copies() == rebuild(place, repository, fail).copies
    with open_catalog(place) as catalog:
        jobs = catalog.jobs()
    assert len(jobs) == WRITERS * ROUNDS
    assert all(job.outcome is Outcome.DONE and job.ended and job.ended >= job.started for job in jobs)


def hang(chosen: Settings, began: Event) -> None:
    with recorded(chosen, JobKind.BACKUP, fail, machine="web01", id="hangs"):
        began.set()
        signal.pause()


def test_a_job_whose_process_is_gone_has_crashed(place: Settings) -> None:
    began = CONTEXT.Event()
    process = CONTEXT.Process(target=hang, args=(place, began))
    process.start()
    try:
        assert began.wait(60)
        with open_catalog(place) as catalog:
            (job,) = catalog.jobs()
            assert (job.outcome, job.host) == (None, socket.gethostname())
            process.kill()
            process.join()
            (job,) = catalog.jobs()
            assert (job.outcome, job.reason) == (Outcome.CRASHED, "its process is gone")
            catalog.begin(JobKind.BACKUP, "/r", id="hangs")
            assert catalog.jobs()[0].outcome is None
    finally:
        process.kill()
        process.join()


def test_of_another_machine_only_silence_tells(place: Settings) -> None:
    with open_catalog(place) as catalog:
        catalog.begin(JobKind.BACKUP, "/r", id="far")
        database = open_database(place)

        def seen(ago: float) -> Outcome | None:
            with database.writing() as connection:
                last = database.now(connection) - timedelta(seconds=ago)
                values = {"process": "another-boot 4026531836 1 1", "host": "lm2", "seen": last}
                connection.execute(sa.update(tables.jobs).values(values))
            return catalog.jobs()[0].outcome

        assert seen(SILENCE - 60) is None
        assert seen(SILENCE + 1) is Outcome.CRASHED
        assert "lm2 was not heard of since" in catalog.jobs()[0].reason
        catalog.beat("far")
        assert catalog.jobs()[0].outcome is None
        database.close()


def test_a_process_says_that_it_lives(place: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("livemount.catalog.api.BEAT", 0.05)
    database = open_database(place)

    def seen() -> datetime:
        with database.reading() as connection:
            found: datetime = connection.execute(sa.select(tables.jobs.c.seen)).scalar_one()
        return found

    with recorded(place, JobKind.BACKUP, fail):
        first, deadline = seen(), time.monotonic() + 60
        while seen() == first:
            assert time.monotonic() < deadline
    database.close()


def test_the_newest_of_each_kind_and_how_many(place: Settings) -> None:
    with open_catalog(place) as catalog:
        done, failed = Outcome.DONE, Outcome.FAILED
        noted = [("a", failed), ("a", done), (None, done), ("a", done), ("b", None), ("b", None)]
        for number, (machine, outcome) in enumerate(noted):
            catalog.begin(JobKind.BACKUP if machine else JobKind.CHECK, "/r", id=str(number), machine=machine)
            if outcome is not None:
                catalog.end(str(number), outcome)
        assert [job.id for job in catalog.latest()] == ["0", "2", "3", "4", "5"]
        counts = catalog.counts()
        assert counts["backup"] == {"failed": 1, "done": 2, "running": 2}
        assert counts["check"] == {"done": 1}
        third = catalog.jobs()[3].started
        assert [job.id for job in catalog.jobs(since=third, kind=JobKind.BACKUP)] == ["3", "4", "5"]


def test_the_tables_are_as_the_migrations_leave_them_on_postgresql(server: str, tmp_path: Path) -> None:
    write_secret(tmp_path / "password", "horse staple")
    database = Database(database_url(server, tmp_path / "password"))
    with database.reading() as connection:
        found = sa.inspect(connection)
        for table in tables.metadata.sorted_tables:
            assert {column["name"] for column in found.get_columns(table.name)} == set(table.columns.keys())
    database.close()


def test_a_wrong_password_and_a_server_that_is_away_are_told(server: str, tmp_path: Path) -> None:
    write_secret(tmp_path / "password", "wrong")
    with (
        pytest.raises(DeniedError) as denied,
        open_catalog(Settings(home=tmp_path, catalog=server, catalog_password_file=tmp_path / "password")),
    ):
        pass
    assert "wrong" not in str(denied.value)
    with (
        pytest.raises(UnavailableError),
        open_catalog(Settings(home=tmp_path, catalog=f"postgresql://postgres@/postgres?host={tmp_path}")),
    ):
        pass
