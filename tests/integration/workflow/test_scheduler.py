"""The manager's real service runs policies when they are due: once, also when it is killed in the middle."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from dbos import DBOSClient

from livemount.catalog.api import open_catalog, open_database
from livemount.catalog.catalog import Job, JobKind, Outcome
from livemount.core.secrets import write_secret
from livemount.core.settings import Settings
from livemount.manager.service import database_url
from livemount.media.repository import Repository
from livemount.policies.applied import open_policies, runner_of
from livemount.policies.policy import Policy

pytestmark = pytest.mark.integration
PATIENCE = 60


@contextmanager
def service(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "LIVEMOUNT_HOME": str(settings.home), "LIVEMOUNT_ENVIRONMENT": settings.environment}
    log = (settings.home / "service.log").open("ab")
    process = subprocess.Popen([sys.executable, "-m", "tests.support.manager"], env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        log.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def jobs(settings: Settings) -> list[Job]:
    with open_catalog(settings) as catalog:
        return catalog.jobs()


def once(settings: Settings, disk: Path, **fields: object) -> datetime:
    """Apply a policy that is due once, in a moment."""
    due = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=3)
    policy = Policy.model_validate(
        {
            "name": "nightly",
            "machine": "web01",
            "disks": [str(disk)],
            "when": f"{due.second} {due.minute} {due.hour} {due.day} {due.month} *",
            "keep": {"keep-last": 1},
            **fields,
        }
    )
    with open_policies(settings) as policies:
        policies.apply(policy, runner_of(settings))
    return due


@pytest.fixture
def place(tmp_path: Path) -> tuple[Settings, Repository]:
    settings = Settings(home=tmp_path, environment="sched")
    write_secret(settings.repository_password, "correct horse")
    return settings, Repository.init(settings.repository_path, settings.repository_password)


def test_killed_in_the_middle_of_a_backup_there_is_one_copy(place: tuple[Settings, Repository]) -> None:
    settings, repository = place
    disk = settings.home / "disk.raw"
    disk.write_bytes(b"old" * 4096)
    repository.backup(disk, "web01")
    with disk.open("wb") as file:
        for seed in range(12):
            file.write(random.Random(seed).randbytes(32 << 20))
    data = repository.path / "data"
    with service(settings) as process:
        due = once(settings, disk)
        stored = sum(1 for _ in data.rglob("*"))
        until(lambda: sum(1 for _ in data.rglob("*")) > stored)
        process.kill()
        process.wait()
    (cut_off,) = jobs(settings)
    assert (cut_off.kind, cut_off.outcome, cut_off.due) == (JobKind.BACKUP, Outcome.CRASHED, due)
    assert len(repository.copies("web01")) == 1
    with service(settings) as process:
        until(lambda: any(job.kind is JobKind.FORGET and job.outcome for job in jobs(settings)))
        process.terminate()
        assert process.wait(PATIENCE) == 0
    backup, forget = jobs(settings)
    assert (backup.id, backup.outcome, backup.due, backup.policy) == (cut_off.id, Outcome.DONE, due, "nightly")
    assert (forget.outcome, forget.reason) == (Outcome.DONE, "1 of 2 copies forgotten")
    (copy,) = repository.copies("web01")
    assert backup.copy_id == copy.id
    assert any(tag.startswith("nightly@") for tag in copy.description.tags)


def ended(settings: Settings, policy: str) -> bool:
    """Whether the workflow of a policy's only run is over."""
    client = DBOSClient(system_database_url=database_url(settings.paths()))
    try:
        found = client.list_workflows(workflow_id_prefix=f"policy:{policy}:")
        return [each.status for each in found] == ["SUCCESS"]
    finally:
        client.destroy()


def test_missed_while_down_and_away_it_runs_once_when_it_can(place: tuple[Settings, Repository]) -> None:
    settings, repository = place
    disk = settings.home / "disk.raw"
    once(settings, disk, name="broken")
    with open_database(settings).writing() as connection:
        connection.exec_driver_sql("UPDATE policies SET policy = '{}'")
    due = once(settings, disk, retry={"tries": 100, "wait-seconds": 0.2})
    until(lambda: datetime.now(UTC) > due)
    away = repository.path.with_name("away")
    repository.path.rename(away)
    disk.write_bytes(random.Random(1).randbytes(1 << 16))
    with service(settings):
        until(lambda: any(job.outcome is Outcome.FAILED for job in jobs(settings)))
        away.rename(repository.path)
        until(lambda: any(job.outcome is Outcome.DONE for job in jobs(settings)))
        # A source that is missing is told of at once: nothing waits an hour to look again.
        once(settings, disk.with_name("missing.raw"), name="missing", retry={"tries": 100, "wait-seconds": 3600})
        until(lambda: ended(settings, "missing"))
    assert [job.due for job in jobs(settings) if (job.kind, job.policy) == (JobKind.BACKUP, "nightly")] == [due]
    (missing,) = [job for job in jobs(settings) if job.policy == "missing"]
    assert (missing.outcome, "missing.raw: No such file" in missing.reason) == (Outcome.FAILED, True), missing.reason
    assert (settings.home / "service.log").read_text().count("the policy broken cannot be run") == 1
    assert len(repository.copies("web01")) == 1
