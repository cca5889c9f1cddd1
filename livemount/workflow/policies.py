"""One durable workflow for each time that a policy is due, and what starts them.

Crash contract: a workflow's id is its policy, its purpose and the time that was due, so it is started once, however
often that is tried. Killed, its step begins again; the copy that it may have made before is known by a tag, and taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dbos import DBOS
from dbos import error as dbos_error

from livemount.core.errors import ConflictError, LivemountError, UnavailableError
from livemount.core.settings import Settings
from livemount.policies.applied import Applied, open_policies, runner_of
from livemount.policies.policy import Policy, Purpose
from livemount.policies.run import Occasion, alone, run
from livemount.policies.schedule import last_due

log = logging.getLogger(__name__)

QUEUE = "policies"
AT_ONCE = 2
"""So many run at a time; no two of one policy."""
PREFIX = "policy:"
"""Of the workflows' ids: no mount can have such a name."""

AWAY = (UnavailableError, ConflictError)
"""What may be over by itself."""

_settings: Settings | None = None


def use(settings: Settings) -> None:
    """Name the settings that this process's workflows go by (DBOS's functions take data only)."""
    global _settings
    _settings = settings


def _get() -> Settings:
    if _settings is None:
        raise RuntimeError("livemount.workflow.policies.use() was not called")
    return _settings


def workflow_id(policy: str, occasion: Occasion) -> str:
    """The id of the workflow of an occasion."""
    return f"{PREFIX}{policy}:{occasion.purpose}:{occasion.due.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def order(policy: Policy, occasion: Occasion) -> dict[str, Any]:
    """What a workflow is given, as plain JSON."""
    return {"policy": policy.dump(), "occasion": occasion.model_dump(mode="json")}


@DBOS.step()
def _run(data: dict[str, Any]) -> dict[str, Any]:
    policy, occasion = Policy.model_validate_json(data["policy"]), Occasion.model_validate(data["occasion"])
    job = workflow_id(policy.name, occasion)
    try:
        with alone(_get(), policy):
            return {"result": run(_get(), policy, occasion, job, log.warning)}
    except LivemountError as error:
        log.warning("%s: %s", job, error)
        return {"error": str(error), "again": isinstance(error, AWAY)}
    except Exception as error:
        log.exception("%s failed unexpectedly", job)
        return {"error": f"{type(error).__name__}: {error}", "again": False}


@DBOS.workflow(name="policy")
def policy_workflow(data: dict[str, Any]) -> dict[str, Any]:
    """One run of a policy, tried again while its source or the repository is away."""
    retry = Policy.model_validate_json(data["policy"]).retry
    failed = 0
    while True:
        done = _run(data)
        failed += 1
        if not done.get("again") or failed >= retry.tries:
            return done
        DBOS.sleep(retry.wait(failed))


class Scheduler:
    """Starts what is due. Not for several threads."""

    def __init__(self, settings: Settings, version: str) -> None:
        self._settings = settings
        self._version = version
        self._started: dict[tuple[str, Purpose], datetime] = {}
        self._told: set[str] = set()

    def look(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Start the newest of what is due and has not run; a policy that still runs is left for the next look.

        A policy that cannot be started is told of in the log, once, and keeps no other from being started.
        """
        problems: list[str] = []
        with open_policies(self._settings) as policies:
            found = policies.all(problems.append, runner_of(self._settings))
        for applied in found:
            if not applied.suspended:
                try:
                    self._start(applied, now())
                except Exception as error:
                    problems.append(f"the policy {applied.policy.name} cannot be started: {error!r}")
        for problem in problems:
            if problem not in self._told:
                log.error("%s", problem)
        self._told = set(problems)

    def _start(self, applied: Applied, now: datetime) -> None:
        policy = applied.policy
        for purpose, when in policy.times().items():
            due = last_due(when, policy.time_zone, now)
            if due <= applied.since or self._started.get((policy.name, purpose)) == due:
                continue
            occasion = Occasion(purpose=purpose, due=due, scheduled=True)
            try:
                DBOS.enqueue_workflow_with_options(
                    {
                        "workflow_name": "policy",
                        "queue_name": QUEUE,
                        "workflow_id": workflow_id(policy.name, occasion),
                        "deduplication_id": policy.name,
                        "app_version": self._version,
                    },
                    order(policy, occasion),
                )
            except dbos_error.DBOSQueueDeduplicatedError:
                continue
            self._started[policy.name, purpose] = due
