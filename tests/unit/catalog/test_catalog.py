"""The catalog always says what the repository says, whoever changed it, and is made anew from it alone."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import given, settings
from hypothesis import strategies as st

from livemount.catalog import tables
from livemount.catalog.api import find_copy, known_copies, open_catalog, rebuild, recorded
from livemount.catalog.catalog import Catalog, JobKind, Outcome
from livemount.catalog.database import MIGRATIONS, Database, database_url
from livemount.core.errors import DeniedError, LivemountError, UnavailableError, UnsupportedError, UsageError
from livemount.core.secrets import write_secret
from livemount.core.settings import Settings
from livemount.media.repository import Listing, Repository, Rules


def image(path: Path, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(64 << 10))
    return path


def make(root: Path) -> tuple[Settings, Repository]:
    write_secret(root / "repository-password", "correct horse")
    chosen = Settings(home=root, repository=None, catalog=None)
    return chosen, Repository.init(chosen.repository_path, chosen.repository_password)


@pytest.fixture
def place(tmp_path: Path) -> tuple[Settings, Repository]:
    return make(tmp_path)


def fail(text: str) -> None:
    pytest.fail(f"warned: {text}")


@settings(max_examples=6, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "forget a", "forget all", "look", "find"]), min_size=1, max_size=8))
def test_is_what_the_repository_says_after_any_operations(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        chosen, repository = make(root)
        for number, step in enumerate(steps):
            if step in ("a", "b"):
                repository.backup(image(root / "disk.raw", number), step)
            elif step.startswith("forget"):
                repository.forget(Rules(keep_last=1), "a" if step == "forget a" else None)
            elif step == "find" and (copies := repository.copies()):
                assert find_copy(chosen, repository, fail, f"{copies[0].name}@{copies[0].id}") == copies[0]
            assert known_copies(chosen, repository, fail, "a") == repository.copies("a")
        kept = known_copies(chosen, repository, fail)
        (root / "catalog.sqlite").unlink()
        assert rebuild(chosen, repository, fail).copies == kept == repository.copies()
        assert known_copies(chosen, repository, fail) == kept


def test_answers_without_reading_snapshots(
    place: tuple[Settings, Repository], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, repository = place
    repository.backup(image(tmp_path / "disk.raw", 1), "web01")
    first = known_copies(chosen, repository, fail)

    def unread(_self: Repository, _name: str | None = None) -> Listing:
        raise AssertionError("the repository was read")

    monkeypatch.setattr(Repository, "listing", unread)
    assert known_copies(chosen, repository, fail) == first


def test_another_repository_in_the_same_place_is_another(place: tuple[Settings, Repository], tmp_path: Path) -> None:
    chosen, repository = place
    repository.backup(image(tmp_path / "disk.raw", 1), "web01")
    assert known_copies(chosen, repository, fail)
    shutil.rmtree(repository.path)
    assert known_copies(chosen, Repository.init(repository.path, chosen.repository_password), fail) == []


def begin_elsewhere(home: Path, id: str) -> None:
    program = f"""if True:
        from livemount.catalog.api import JobKind, Settings, open_catalog
        with open_catalog(Settings()) as catalog:
            catalog.begin(JobKind.CHECK, "/r", id={id!r})
    """
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "LIVEMOUNT_HOME": str(home)}, check=True)


def test_nothing_is_lost_between_processes_of_which_one_opens_it_again_and_again(tmp_path: Path) -> None:
    chosen = Settings(home=tmp_path)
    with open_catalog(chosen) as long:
        long.begin(JobKind.CHECK, "/r", id="first")
        with open_catalog(chosen):
            pass
        # Who closes SQLite's log last deletes it: others must see that this process has it open.
        for id in ("second", "fourth"):
            begin_elsewhere(tmp_path, id)
            long.begin(JobKind.CHECK, "/r", id={"second": "third", "fourth": "fifth"}[id])
    with open_catalog(chosen) as catalog:
        assert [job.id for job in catalog.jobs()] == ["first", "second", "third", "fourth", "fifth"]
    assert tmp_path.joinpath("catalog.sqlite").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["catalog.sqlite"]


def test_damage_is_told_each_time(place: tuple[Settings, Repository], tmp_path: Path) -> None:
    chosen, repository = place
    copy = repository.backup(image(tmp_path / "disk.raw", 1), "web01")
    repository.backup(image(tmp_path / "disk.raw", 2), "web02")
    (repository.path / "snapshots" / copy.id).chmod(0o600)
    (repository.path / "snapshots" / copy.id).write_bytes(b"damaged")
    for _ in range(2):
        told: list[str] = []
        assert [found.name for found in known_copies(chosen, repository, told.append)] == ["web02"]
        assert copy.id in "".join(told)


def test_a_repository_that_is_away_is_told_as_such(place: tuple[Settings, Repository]) -> None:
    chosen, repository = place
    repository.path.rename(repository.path.with_name("elsewhere"))
    with pytest.raises(UnavailableError, match="repository"):
        known_copies(chosen, repository, fail)


def test_a_broken_catalog_stops_nothing_and_is_rebuilt(place: tuple[Settings, Repository], tmp_path: Path) -> None:
    chosen, repository = place
    copy = repository.backup(image(tmp_path / "disk.raw", 1), "web01")
    (tmp_path / "catalog.sqlite").write_bytes(b"no database at all" * 1000)
    told: list[str] = []
    assert find_copy(chosen, repository, told.append, "web01") == copy
    assert "damaged" in told[0]
    with recorded(chosen, JobKind.CHECK, told.append):
        pass
    assert "not noted" in told[1]
    assert rebuild(chosen, repository, told.append).copies == [copy]
    assert (tmp_path / "catalog.sqlite.damaged").exists()
    assert known_copies(chosen, repository, fail) == [copy]


def test_a_catalog_of_newer_software_is_refused_and_left_alone(
    place: tuple[Settings, Repository], tmp_path: Path
) -> None:
    chosen, repository = place
    repository.backup(image(tmp_path / "disk.raw", 1), "web01")
    known_copies(chosen, repository, fail)
    with sqlite3.connect(tmp_path / "catalog.sqlite") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(UnsupportedError, match="9999, newer"), open_catalog(chosen):
        pass
    with pytest.raises(UnsupportedError):
        rebuild(chosen, repository, fail)
    told: list[str] = []
    assert known_copies(chosen, repository, told.append) == repository.copies()
    assert len(told) == 1


def test_the_tables_are_as_the_migrations_leave_them(tmp_path: Path) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_current_head() == tables.HEAD
    database = Database(database_url(f"sqlite:///{tmp_path / 'c.sqlite'}"))
    with database.reading() as connection:
        found = sa.inspect(connection)
        for table in tables.metadata.sorted_tables:
            columns = {column["name"]: column["nullable"] for column in found.get_columns(table.name)}
            assert columns == {column.name: column.nullable for column in table.columns}
    database.close()


def test_a_migration_that_is_cut_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from livemount.catalog import database as module

    real = module.upgrade

    def cut_off(connection: sa.Connection, to: str = tables.HEAD) -> None:
        real(connection, to)
        raise KeyboardInterrupt

    url = database_url(f"sqlite:///{tmp_path / 'c.sqlite'}")
    monkeypatch.setattr(module, "upgrade", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Database(url)
    with sqlite3.connect(tmp_path / "c.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    monkeypatch.setattr(module, "upgrade", real)
    Database(url).close()


def test_jobs_are_noted_with_how_they_ended(place: tuple[Settings, Repository]) -> None:
    chosen, _ = place
    with recorded(chosen, JobKind.PRUNE, fail) as ending:
        ending.bytes = 7 << 40
    with pytest.raises(UsageError), recorded(chosen, JobKind.FORGET, fail, machine="web01"):
        raise UsageError("these rules keep no copy")
    with recorded(chosen, JobKind.FORGET, None):
        pass
    with open_catalog(chosen) as catalog:
        done, failed = catalog.jobs()
        assert (done.outcome, done.bytes) == (Outcome.DONE, 7 << 40)
        assert (failed.outcome, failed.reason) == (Outcome.FAILED, "these rules keep no copy")
        assert catalog.jobs(machine="web01") == [failed] == catalog.jobs(limit=1)


def test_a_job_that_begins_again_is_one(tmp_path: Path) -> None:
    catalog = Catalog(Database(database_url(f"sqlite:///{tmp_path / 'c.sqlite'}")))
    catalog.begin(JobKind.BACKUP, "/r", id="one")
    again = catalog.begin(JobKind.BACKUP, "/r", id="one")
    assert catalog.jobs() == [again]
    with pytest.raises(LivemountError, match="no job two"):
        catalog.end("two", Outcome.DONE)
    catalog.close()


def test_a_fresh_catalog_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    Database(database_url(f"sqlite:///{tmp_path / 'c.sqlite'}")).close()
    assert (tmp_path / "c.sqlite").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:secret@h/d", "holds a password"),
        ("postgresql://u@h/d?password=secret", "holds a password"),
        ("sqlite://", "names no file"),
        ("mysql://h/d", "cannot be kept"),
        ("nonsense", "malformed"),
    ],
)
def test_urls_that_are_refused(url: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as refused:
        database_url(url)
    assert "secret" not in str(refused.value)


def test_a_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    (tmp_path / "password").chmod(0o644)
    with pytest.raises(DeniedError):
        database_url("postgresql://u@h/d", tmp_path / "password")
