"""The report counts what can be mounted, by the clock of each policy; jobs tell where the repository does not."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from livemount.catalog.api import open_catalog, recorded
from livemount.catalog.catalog import JobKind, Outcome
from livemount.cli.main import app
from livemount.cli.report import schema_text
from livemount.core.errors import LateError, NotFoundError, UnavailableError
from livemount.core.secrets import write_secret
from livemount.core.settings import Settings
from livemount.media.repository import Repository, Rules
from livemount.policies.applied import open_policies, runner_of
from livemount.policies.policy import Policy, Purpose
from livemount.policies.report import Entry, Report, make_report
from livemount.policies.run import Occasion, run

HOUR = timedelta(hours=1)


def daily(time: datetime) -> str:
    """The cron expression of a time of each day."""
    return f"{time.minute} {time.hour} * * *"


class Place:
    """A repository, a catalog, a disk that changes, and the policy `nightly` of `web01`."""

    def __init__(self, root: Path) -> None:
        self.settings = Settings(home=root)
        write_secret(self.settings.repository_password, "correct horse")
        self.repository = Repository.init(self.settings.repository_path, self.settings.repository_password)
        self.due = datetime.now(UTC).replace(second=0, microsecond=0) - 2 * HOUR
        """When the policy was due last."""
        self.disk = root / "disk.raw"
        self.change(0)

    def change(self, seed: int) -> None:
        """Other content."""
        self.disk.write_bytes(random.Random(seed).randbytes(1 << 18))

    def apply(self, runner: str | None = None, **fields: object) -> Policy:
        """Put a policy into force, which was in force for ever."""
        text = {"name": "nightly", "machine": "web01", "disks": [str(self.disk)], "when": daily(self.due), **fields}
        policy = Policy.model_validate(text)
        with open_policies(self.settings) as policies:
            policies.apply(policy, runner or runner_of(self.settings))
            with policies._database.writing() as connection:
                connection.exec_driver_sql("UPDATE policies SET since = '2020-01-01 00:00:00.000000'")
        return policy

    def run(self, policy: Policy, due: datetime, purpose: Purpose = Purpose.BACKUP) -> None:
        """Do what was due."""
        occasion = Occasion(purpose=purpose, due=due, scheduled=True)
        run(self.settings, policy, occasion, f"{policy.name}{purpose}{due}", pytest.fail)

    def report(self, now: datetime | None = None, warn: Callable[[str], object] = pytest.fail) -> Report:
        """The report, with an hour of grace."""
        return make_report(self.settings, warn, HOUR, 30, now)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def only(report: Report) -> Entry:
    (entry,) = report.entries
    return entry


def test_late_is_what_has_no_copy_for_its_last_time(place: Place) -> None:
    policy, due = place.apply(), place.due
    entry = only(place.report(due + HOUR - timedelta(seconds=1)))
    assert (entry.late, entry.wanted) == (True, due - timedelta(days=1)), "within the grace the time before counts"
    entry = only(place.report())
    assert (entry.late, entry.wanted, entry.last_success, entry.copies) == (True, due, None, 0)
    assert place.report().late == ["nightly: no copy"]
    place.run(policy, due)
    (copy,) = place.repository.copies()
    entry = only(place.report())
    assert (entry.late, entry.last_success, entry.last_copy) == (False, copy.time, f"web01@{copy.id[:8]}")
    assert not only(place.report(due + timedelta(days=1) + HOUR - timedelta(seconds=1))).late
    late = only(place.report(due + timedelta(days=1) + HOUR))
    assert (late.late, late.wanted) == (True, due + timedelta(days=1))
    with open_policies(place.settings) as policies:
        policies.suspend("nightly", suspended=True)
    entry = only(place.report(due + timedelta(days=9)))
    assert (entry.late, entry.wanted, entry.next) == (False, None, None)


def test_a_success_whose_copy_is_gone_is_none(place: Place) -> None:
    place.run(place.apply(), place.due)
    (copy,) = place.repository.copies()
    (place.repository.path / "snapshots" / copy.id).unlink()
    entry = only(place.report())
    assert (entry.late, entry.last_success, entry.copies) == (True, None, 0)
    assert entry.growth[0].added == copy.added, "what it added is still told of"


def test_copies_are_of_the_policy_that_made_them(place: Place) -> None:
    policy, due = place.apply(check={"when": daily(place.due + HOUR / 2)}), place.due
    place.repository.backup(place.disk, "web01")
    place.repository.backup(place.disk, "db01")
    place.change(1)
    place.run(policy, due)
    place.change(2)
    place.run(policy, due + timedelta(minutes=1))
    second, third = place.repository.copies("web01")[1:]
    place.repository.pins.pin("hold.x", second.id, "before the upgrade")
    with (
        pytest.raises(ValueError, match="broken"),
        recorded(place.settings, JobKind.BACKUP, pytest.fail, "web01", "nightly"),
    ):
        raise ValueError("broken")
    with open_catalog(place.settings) as catalog:
        catalog.begin(JobKind.BACKUP, str(place.repository.path), machine="web01", policy="nightly")
    report = place.report()
    db01, other, nightly = report.entries
    assert [(each.machine, each.policy, each.copies) for each in report.entries] == [
        ("db01", None, 1),
        ("web01", None, 1),
        ("web01", "nightly", 2),
    ]
    assert (db01.late, other.late, nightly.late) == (False, False, False)
    assert (nightly.held, nightly.size, nightly.stored) == (1, third.size, third.stored)
    assert nightly.added == (second.added or 0) + (third.added or 0) > 1 << 19
    assert nightly.last_failure is not None
    assert (nightly.last_failure.reason, nightly.failing, nightly.last_success) == ("broken", True, third.time)
    assert nightly.running_since is not None
    place.run(policy, due + timedelta(minutes=2))
    assert not place.report().entries[2].failing
    with (
        pytest.raises(ValueError, match="no rule"),
        recorded(place.settings, JobKind.FORGET, pytest.fail, "web01", "nightly"),
    ):
        raise ValueError("no rule")
    again = place.report().entries[2]
    assert again.last_failure is not None
    assert (again.last_failure.reason, again.failing, again.late) == ("no rule", True, False)
    (day,) = nightly.growth
    assert (day.backups, day.added, day.stored, type(day.date)) == (2, nightly.added, third.stored, date)
    assert report.late == ["check of nightly"]
    place.run(policy, due + HOUR / 2, Purpose.CHECK)
    report = place.report()
    assert report.late == []
    assert report.last_check is not None
    assert report.last_check.outcome is Outcome.DONE
    assert report.last_prune is None
    assert report.jobs["backup"] == {"done": 3, "failed": 1, "running": 1}


def test_a_catalog_that_was_lost_changes_nothing_of_what_is_late(place: Place) -> None:
    policy = place.apply()
    place.run(policy, place.due)
    before = only(place.report())
    (place.settings.home / "catalog.sqlite").unlink()
    place.apply()
    after = only(place.report())
    assert (after.late, after.last_success, after.copies, after.added) == (
        False,
        before.last_success,
        1,
        before.added,
    )


def test_without_the_repository_and_for_other_machines_jobs_tell(place: Place) -> None:
    place.run(place.apply(), place.due)
    place.apply("elsewhere:/var/lib/livemount/local", name="other", machine="web02")
    with open_catalog(place.settings) as catalog:
        catalog.begin(JobKind.BACKUP, "/else", id="far", machine="web02", policy="other", due=place.due)
        catalog.end("far", Outcome.DONE, copy_id="ab" * 32, bytes=7)
    here, far = place.report().entries
    assert (here.copies, far.copies, far.late, far.last_copy) == (1, None, False, "web02@abababab")
    assert [day.added for day in far.growth] == [7]
    place.repository.path.rename(place.repository.path.with_name("away"))
    report = place.report()
    assert report.problem is not None
    assert [(each.copies, each.late) for each in report.entries] == [(None, False), (None, False)]
    assert report.entries[0].last_success is not None


def test_the_command_line(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEMOUNT_HOME", str(place.settings.home))

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, ["report", *words])

    assert "no policies, copies or backups yet" in call().output
    policy = place.apply()
    late = call("--fail-if-late", "--policy", "nightly")
    assert isinstance(late.exception, LateError)
    assert (late.exception.message, late.exception.exit_code) == ("late: nightly: no copy", 10)
    assert "late" in late.output
    place.run(policy, place.due)
    place.repository.forget(Rules(keep_last=1))
    good = call("--fail-if-late")
    assert good.exit_code == 0
    assert f"web01{' ' * 4}nightly" in good.output
    answer = json.loads(call("--machine", "web01", "--output", "json").output)
    schema = json.loads(schema_text())
    assert answer.keys() == schema["properties"].keys() == set(schema["required"]) | {"version"}
    assert answer["entries"][0].keys() == schema["$defs"]["Entry"]["properties"].keys()
    families = {each.name: each for each in text_string_to_metric_families(call("--metrics").output)}
    (sample,) = families["livemount_backup_last_success_timestamp_seconds"].samples
    assert sample.labels == {"machine": "web01", "policy": "nightly"}
    assert sample.value == pytest.approx(place.repository.copies()[0].time.timestamp())
    assert families["livemount_backup_late"].samples[0].value == 0
    assert isinstance(call("--policy", "no-such").exception, NotFoundError)
    place.repository.path.rename(place.repository.path.with_name("away"))
    assert isinstance(call("--fail-if-late").exception, UnavailableError)
    assert call().exit_code == 0


def test_the_published_schema_is_that_of_the_report() -> None:
    published = Path(__file__).parents[3] / "docs" / "report.schema.json"
    assert published.read_text() == schema_text(), "livemount report --schema > docs/report.schema.json"
