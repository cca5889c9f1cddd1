"""Policies: read from files with errors that name the place, applied once, due when their zone's clock says so."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from livemount.catalog.api import open_catalog
from livemount.catalog.catalog import Catalog, JobKind, Outcome
from livemount.catalog.database import Database, database_url, upgrade
from livemount.catalog.tables import HEAD
from livemount.cli.main import app
from livemount.core.errors import ConflictError, NotFoundError, UnavailableError, UnsupportedError, UsageError
from livemount.core.secrets import write_secret
from livemount.core.settings import Settings
from livemount.media.repository import Repository
from livemount.policies.applied import Change, Policies
from livemount.policies.policy import Policy, Purpose, RetryRule
from livemount.policies.reading import parse_policy
from livemount.policies.run import Occasion, alone
from livemount.policies.run import run as run_policy
from livemount.policies.schedule import due_after, last_due, valid
from livemount.policies.schema import schema_text

DOCS = Path(__file__).parents[3] / "docs"
SMALL = """\
name: web01-nightly
machine: web01
disks:
  - /srv/web01.raw
when: 30 1 * * *
"""


def policy(text: str = SMALL) -> Policy:
    return parse_policy(text.encode(), "a.yaml")


def policies(folder: Path) -> Policies:
    return Policies(Database(database_url(f"sqlite:///{folder / 'c.sqlite'}")))


def test_the_example_in_the_docs_is_a_policy() -> None:
    text = (DOCS / "policies.md").read_text().split("```yaml\n")[1].split("```")[0]
    assert set(policy(text).times()) == set(Purpose)


def test_the_published_schema_is_that_of_the_model() -> None:
    assert (DOCS / "policy.schema.json").read_text() == schema_text(), (
        "livemount policy schema > docs/policy.schema.json"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SMALL + "retry:\n  tries: 0\n", "a.yaml, line 7: retry.tries: "),
        (SMALL + "fire: 1\n", "a.yaml, line 6: fire: there is no such field"),
        (SMALL.replace("/srv", "srv"), "a.yaml, line 4: disks.0: must be an absolute path"),
        (SMALL.replace("30 1 * * *", "0 0 31 2 *"), "a.yaml, line 5: when: "),
        (SMALL.replace("30 1 * * *", "'@daily'"), "a.yaml, line 5: when: a cron expression has five fields"),
        (SMALL.replace("30 1 * * *", "30 R * * *"), "a.yaml, line 5: when: "),
        (SMALL.replace("30 1 * * *", "H/5 1 * * *"), "a.yaml, line 5: when: "),
        (SMALL + "time-zone: Mars/Phobos\n", "a.yaml, line 6: time-zone: 'Mars/Phobos' is no time zone"),
        (SMALL + "time-zone: ../../etc/passwd\n", "a.yaml, line 6: time-zone: "),
        (SMALL + "files: /mnt\n", "a.yaml, line 1: either disks or files"),
        (SMALL + "boot: 1\n", "there is no disk 1"),
        (SMALL + "keep: {}\n", "keep says nothing"),
        (SMALL + "name: b\n", "a.yaml, line 6: name: is there twice"),
        (SMALL + "when: *x\n", "a.yaml, line 6: an alias"),
        (SMALL + "tags: [a\n", "is no YAML"),
        ("- a", "a.yaml, line 1: is no mapping"),
        ("", "a.yaml: is no mapping"),
        (SMALL + "---\n" + SMALL, "is no YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        policy(text)
    assert told in raised.value.message


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for text in (data, SMALL.encode() + data):
        try:
            parse_policy(text, "a.yaml")
        except UsageError as error:
            told = error.message
        else:
            continue
        assert told.startswith("a.yaml")


def test_the_clock_of_the_zone_counts() -> None:
    now = datetime(2026, 3, 29, 12, tzinfo=UTC)  # Berlin's clocks went from 2:00 to 3:00 that day
    assert last_due("30 2 * * *", "Europe/Berlin", now) == datetime(2026, 3, 29, 1, tzinfo=UTC)
    assert due_after("30 2 * * *", "Europe/Berlin", now) == datetime(2026, 3, 30, 0, 30, tzinfo=UTC)
    assert last_due("30 2 * * *", "UTC", now.replace(hour=2, minute=30)) == now.replace(hour=2, minute=30)


@given(
    st.sampled_from(["* * * * *", "15 */7 2 * * *", "30 2 * * *", "0 3 1 * *", "59 1 * * 0"]),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2030, 1, 1), timezones=st.just(UTC)),
)
def test_what_is_due_next_is_due_once(expression: str, zone: str, now: datetime) -> None:
    following = due_after(valid(expression), zone, now)
    assert last_due(expression, zone, now) <= now < following
    assert last_due(expression, zone, following) == following
    assert last_due(expression, zone, following - timedelta(microseconds=1)) <= now


def test_waits_grow_to_an_hour() -> None:
    rule = RetryRule(wait_seconds=60)
    assert [rule.wait(number) for number in (1, 2, 3, 99)] == [60, 120, 240, 3600]


def test_applied_twice_is_applied_once(tmp_path: Path) -> None:
    kept = policies(tmp_path)
    assert kept.apply(policy(), "here", plan_only=True)
    assert kept.all(pytest.fail) == []
    assert Change(field="machine", before=None, after="web01") in kept.apply(policy(), "here")
    first = kept.get("web01-nightly")
    assert first.policy == policy()
    assert kept.apply(policy(), "here") == []
    assert kept.get("web01-nightly") == first
    tagged = policy(SMALL + "tags: [a]\n")
    assert kept.apply(tagged, "there") == [
        Change(field="tags", before=None, after=["a"]),
        Change(field="run by", before="here", after="there"),
    ]
    assert kept.get("web01-nightly").since == first.since
    assert kept.all(pytest.fail, "here") == []
    kept.apply(policy(SMALL.replace("30 1", "30 2")), "there")
    changed = kept.get("web01-nightly")
    assert changed.since > first.since, "what the new times say of the past is not run"
    kept.suspend("web01-nightly", suspended=True)
    assert kept.get("web01-nightly").suspended
    kept.suspend("web01-nightly", suspended=False)
    assert kept.get("web01-nightly").since > changed.since
    kept.remove("web01-nightly")
    with pytest.raises(NotFoundError):
        kept.get("web01-nightly")
    kept.close()


def test_a_policy_that_is_refused_is_told_of_and_keeps_no_other_away(tmp_path: Path) -> None:
    kept = policies(tmp_path)
    kept.apply(policy(), "here")
    kept.apply(policy(SMALL.replace("web01-nightly", "other")), "here")
    with sqlite3.connect(tmp_path / "c.sqlite") as opened:
        opened.execute('UPDATE policies SET policy = \'{"name": "other", "fire": 1}\' WHERE name = \'other\'')
    opened.close()
    told: list[str] = []
    assert [each.policy.name for each in kept.all(told.append)] == ["web01-nightly"]
    assert "the policy other cannot be run" in told[0]
    with pytest.raises(UnsupportedError, match="apply` its file again"):
        kept.get("other")
    kept.suspend("other", suspended=True)
    assert kept.apply(policy(SMALL.replace("web01-nightly", "other")), "here")
    assert kept.get("other").suspended
    kept.remove("other")
    kept.close()


def test_a_source_that_is_not_there_is_away_when_its_folder_is_empty(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    write_secret(settings.repository_password, "correct horse")
    nightly = policy(SMALL.replace("/srv/web01.raw", str(tmp_path / "vms" / "web" / "disk.raw")))
    occasion = Occasion(purpose=Purpose.BACKUP, due=datetime.now(UTC), scheduled=True)
    with pytest.raises(UnavailableError, match="repository"):
        run_policy(settings, nightly, occasion, "one", pytest.fail)
    Repository.init(settings.repository_path, settings.repository_password)
    (tmp_path / "vms").mkdir()
    with pytest.raises(UnavailableError, match="is its file system mounted"):
        run_policy(settings, nightly, occasion, "one", pytest.fail)
    (tmp_path / "vms" / "other.raw").touch()
    with pytest.raises(NotFoundError):
        run_policy(settings, nightly, occasion, "one", pytest.fail)
    (tmp_path / "root").mkdir()
    files = policy(SMALL.replace("disks:\n  - /srv/web01.raw", f"files: {tmp_path / 'root'}"))
    with pytest.raises(UnavailableError, match="is empty"):
        run_policy(settings, files, occasion, "one", pytest.fail)


def test_a_catalog_of_the_first_schema_keeps_its_data(tmp_path: Path) -> None:
    url = database_url(f"sqlite:///{tmp_path / 'c.sqlite'}")
    with Database(url).writing() as connection:
        for table in ("policies", "jobs", "copies", "repositories", "alembic_version"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
        upgrade(connection, "0001")
        connection.exec_driver_sql(
            "INSERT INTO jobs (id, kind, location, started, reason, outcome) "
            "VALUES ('one', 'backup', '/r', '2026-01-02 03:04:05.000000', 'web01@1234', 'done')"
        )
    kept = policies(tmp_path)
    assert kept.all(pytest.fail) == []
    kept.apply(policy(), "here")
    kept.close()
    catalog = Catalog(Database(url))
    (job,) = catalog.jobs()
    assert (job.id, job.reason, job.started) == ("one", "web01@1234", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    catalog.close()
    with sqlite3.connect(tmp_path / "c.sqlite") as opened:
        assert opened.execute("SELECT version_num FROM alembic_version").fetchone() == (HEAD,)
    opened.close()


def test_the_command_line_applies_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEMOUNT_HOME", str(tmp_path))
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(SMALL)
    bad.write_text(SMALL.replace("web01-nightly", "other").replace("30 1", "61 1"))

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["policy", *words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.output

    with pytest.raises(UsageError, match=r"bad\.yaml, line 5: when"):
        run("apply", str(good), str(bad))
    assert "no policies" in run("list")
    assert "+ machine: web01" in run("apply", str(good))
    assert run("apply", str(good)) == "web01-nightly: as it was\n"
    run("suspend", "web01-nightly")
    assert '"suspended": true' in run("show", "web01-nightly", "--output", "json")
    run("resume", "web01-nightly")
    write_secret(tmp_path / "repository-password", "correct horse")
    Repository.init(tmp_path / "repository", tmp_path / "repository-password")
    disk = tmp_path / "disk.raw"
    good.write_text(SMALL.replace("/srv/web01.raw", str(disk)) + "keep: {keep-last: 1}\ntags: [nightly]\n")
    run("apply", str(good))
    with pytest.raises(NotFoundError):
        run("run", "web01-nightly")
    for seed in (b"1", b"2"):
        disk.write_bytes(seed * 65536)
        output = run("run", "web01-nightly")
    assert "1 older copies forgotten" in output
    (copy,) = Repository.open(tmp_path / "repository", tmp_path / "repository-password").copies("web01")
    assert copy.description.tags[0] == "nightly"
    with open_catalog(Settings(home=tmp_path)) as catalog:
        jobs = catalog.jobs()
    assert [(job.kind, job.outcome) for job in jobs] == [
        (JobKind.BACKUP, Outcome.FAILED),
        (JobKind.BACKUP, Outcome.DONE),
        (JobKind.FORGET, Outcome.DONE),
        (JobKind.BACKUP, Outcome.DONE),
        (JobKind.FORGET, Outcome.DONE),
    ]
    assert {job.policy for job in jobs} == {"web01-nightly"}
    assert jobs[3].copy_id == copy.id
    run("remove", "web01-nightly")


def test_begun_again_a_run_makes_no_second_copy(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    write_secret(settings.repository_password, "correct horse")
    repository = Repository.init(settings.repository_path, settings.repository_password)
    (tmp_path / "disk.raw").write_bytes(b"1" * 65536)
    nightly = policy(SMALL.replace("/srv/web01.raw", str(tmp_path / "disk.raw")))
    occasion = Occasion(purpose=Purpose.BACKUP, due=datetime.now(UTC) - timedelta(minutes=3), scheduled=True)
    for _ in range(2):
        run_policy(settings, nightly, occasion, "one", pytest.fail)
    run_policy(settings, nightly, occasion.model_copy(update={"purpose": Purpose.CHECK}), "two", pytest.fail)
    run_policy(settings, nightly, occasion.model_copy(update={"purpose": Purpose.PRUNE}), "three", pytest.fail)
    assert len(repository.copies()) == 1
    with open_catalog(settings) as catalog:
        jobs = catalog.jobs()
    assert [(job.id, job.outcome, job.due) for job in jobs] == [
        (id, Outcome.DONE, occasion.due) for id in ("one", "two", "three")
    ]
    assert all("3 min late" in job.reason for job in jobs)
    with alone(settings, nightly), pytest.raises(ConflictError, match="runs already"), alone(settings, nightly):
        pass
