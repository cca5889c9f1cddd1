"""How the command line (and whoever comes next) asks for mounts, watches them, changes their expiry and ends them.

Talks to the workflows through their database, so that nothing is lost when the manager's service is down for a while.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from dbos import DBOSClient, WorkflowStatus
from dbos import error as dbos_error

from livemount.core.errors import ConflictError, LivemountError, NotFoundError, UnavailableError, UsageError
from livemount.core.settings import EnvironmentPaths
from livemount.manager.service import APPLICATION_VERSION, QUEUE, database_url, is_alive, is_ready
from livemount.manager.turns import OWNER, TURN, UNFINISHED, Limits, waiting
from livemount.workflow.mount import CONTROL, OVER, RECORD, dump
from livemount.workflow.states import (
    LONGEST_LEASE,
    Declared,
    EndCause,
    MountOrder,
    MountRecord,
    MountState,
    Transition,
)

START_SECONDS = 30.0
"""A service that has just been started is ready by then."""
BEGIN_SECONDS = 60.0
"""A mount whose turn has come has been begun with by then, or something is wrong."""
_BROKEN = ("ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
"""What DBOS says of a workflow that ended otherwise than by its last step."""


class MountFailedError(LivemountError):
    """A mount did not come up, or could not be taken away wholly."""


def _taken(mount: str) -> ConflictError:
    return ConflictError(
        f"there is a mount {mount} already", hint=f"`livemount unmount {mount}` first, or use another name"
    )


def _over(record: MountRecord) -> bool:
    return record.state.final and not record.left


class Manager:
    """The mounts of one environment."""

    def __init__(self, paths: EnvironmentPaths) -> None:
        """Raises `UnavailableError` when the environment has no manager that runs."""
        deadline = time.monotonic() + START_SECONDS
        while (alive := is_alive(paths.manager_lock)) and not is_ready(paths.manager_lock):
            if time.monotonic() > deadline:
                raise UnavailableError(f"the manager of the environment {paths.name!r} does not get ready")
            time.sleep(0.05)
        if not alive:
            raise UnavailableError(
                f"the manager of the environment {paths.name!r} does not run",
                hint="`livemount environment up` makes the environment and starts it",
            )
        self._paths = paths
        self._client = DBOSClient(system_database_url=database_url(paths))

    def close(self) -> None:
        """Let go of the database."""
        self._client.destroy()

    def request(self, order: MountOrder) -> None:
        """Ask for a mount. Raises `ConflictError` when its name is taken by one that is not over."""
        known = self._workflows(f"{order.mount}.")
        if known and not _over(self._record(known[-1])):
            raise _taken(order.mount)
        # A name may be used again, so ids are numbered. Of two that ask at once the database takes one.
        self._enqueue("mount", f"{order.mount}.{len(known)}", order.model_copy(update={"queued": True}))

    def _enqueue(self, workflow: str, id: str, data: MountOrder | MountRecord) -> None:
        order = data.order if isinstance(data, MountRecord) else data
        try:
            self._client.enqueue(
                {
                    "workflow_name": workflow,
                    "queue_name": QUEUE,
                    "workflow_id": id,
                    "workflow_id_reuse_policy": "reject",
                    "app_version": APPLICATION_VERSION,
                    "attributes": {OWNER: order.owner, TURN: workflow != "mount"},
                },
                dump(data),
            )
        except dbos_error.DBOSWorkflowIDInUseError as error:
            raise _taken(order.mount) from error

    def _workflows(self, prefix: str) -> list[WorkflowStatus]:
        """The mounts' workflows, oldest first."""
        return self._client.list_workflows(name=["mount", "clean"], workflow_id_prefix=prefix, load_input=False)

    def _record(self, workflow: WorkflowStatus, queue: list[str] | None = None) -> MountRecord:
        """What is known of a mount; `queue`: the ids of those whose turn has not come, where they are known."""
        value = self._client.get_event(workflow.workflow_id, RECORD, timeout_seconds=0)
        record = MountRecord.model_validate(value) if value is not None else self._unbegun(workflow)
        if record.state is MountState.REQUESTED and (workflow.attributes or {}).get(TURN) is False:
            record = self._in_queue(record, workflow, self.waiting() if queue is None else queue)
        if workflow.status in _BROKEN and not record.state.final:
            now = datetime.fromtimestamp((workflow.updated_at or 0) / 1000, UTC)
            step = Transition(state=MountState.FAILED, time=now, reason="its workflow broke")
            record = record.model_copy(
                update={
                    "history": [*record.history, step],
                    "left": True,
                    "error": "its workflow broke, which is a bug; the manager's log says more",
                    "hint": f"`livemount unmount {record.order.mount}` takes away what is left",
                    "ended_by": EndCause.FAILED,
                }
            )
        return record

    def _in_queue(self, record: MountRecord, workflow: WorkflowStatus, queue: list[str]) -> MountRecord:
        if workflow.workflow_id not in queue:  # its turn has come just now
            return record
        place = queue.index(workflow.workflow_id) + 1
        step = record.history[-1]
        told = step.model_copy(update={"reason": f"waits for its turn: place {place} of {len(queue)} in the queue"})
        return record.model_copy(update={"history": [*record.history[:-1], told]})

    def _unbegun(self, workflow: WorkflowStatus) -> MountRecord:
        """A mount whose workflow has published nothing yet."""
        (whole,) = self._client.list_workflows(workflow_ids=[workflow.workflow_id], load_output=False)
        assert whole.input is not None  # noqa: S101 - it was listed with it
        data = whole.input["args"][0]
        if whole.name == "clean":
            return MountRecord.model_validate(data)
        asked = datetime.fromtimestamp((whole.created_at or 0) / 1000, UTC)
        step = Transition(state=MountState.REQUESTED, time=asked, reason="asked for")
        return MountRecord(order=MountOrder.model_validate(data), history=[step])

    def waiting(self) -> list[str]:
        """The ids of the workflows whose turn has not come, the next one first."""
        found = self._client.list_workflows(name="mount", status=UNFINISHED, load_input=False, load_output=False)
        return [workflow.workflow_id for workflow in waiting(found)]

    def limits(self) -> Limits:
        """How many mounts there may be at a time."""
        return Limits.read(self._paths.limits)

    def limit(self, limits: Limits) -> None:
        """Change that, at once; mounts that there are stay."""
        limits.write(self._paths.limits)

    def find(self, mount: str) -> MountRecord | None:
        """The newest record of this name, or `None`."""
        known = self._workflows(f"{mount}.")
        return self._record(known[-1]) if known else None

    def record(self, mount: str) -> MountRecord:
        """The newest record of this name. Raises `NotFoundError`."""
        found = self.find(mount)
        if found is None:
            names = ", ".join(record.order.mount for record in self.records()) or "none"
            raise NotFoundError(f"there is no mount {mount!r}", hint=f"mounts: {names}")
        return found

    def records(self, *, ended: bool = False) -> list[MountRecord]:
        """The mounts, oldest first; `ended`: those that are over (and left nothing) as well."""
        newest = {workflow.workflow_id.rpartition(".")[0]: workflow for workflow in self._workflows("")}
        queue = self.waiting()
        # Of what a long history has, only what is asked for is read.
        wanted = [workflow for workflow in newest.values() if ended or workflow.output != OVER]
        records = [self._record(workflow, queue) for workflow in wanted]
        return [record for record in records if ended or not _over(record)]

    def stop(self, mount: str, reason: str, cause: EndCause = EndCause.ASKED) -> None:
        """Tell a mount to end; returns at once. One that failed and left something is taken away again."""
        record = self.record(mount)
        if record.left:
            data = record.model_copy(update={"ended_by": cause})
            self._enqueue("clean", f"{mount}.{len(self._workflows(f'{mount}.'))}", data)
        elif not record.state.final and record.state is not MountState.ENDING:
            self._send(mount, {"kind": "stop", "reason": reason, "cause": cause})

    def change(self, mount: str, expires: datetime, reason: str, declared: Declared | None = None) -> None:
        """Let a mount end at another time; returns at once. `declared`: what its file says now.

        Raises `NotFoundError`, `ConflictError` when it is over, `UsageError` for a time that cannot be.
        """
        record = self.record(mount)
        if record.state.final or record.state is MountState.ENDING:
            raise ConflictError(
                f"the mount {mount} is {record.state}: {record.reason}", hint="`livemount mount` makes a new one"
            )
        now = datetime.now(UTC)
        if not now < expires <= now + LONGEST_LEASE:
            raise UsageError(
                f"the mount {mount} cannot end at {expires.isoformat(timespec='seconds')}",
                hint=f"a time from now to {(now + LONGEST_LEASE).isoformat(timespec='minutes')}",
            )
        message: dict[str, Any] = {"kind": "change", "reason": reason, "expires": expires.isoformat()}
        if declared is not None:
            message["declared"] = declared.model_dump(mode="json")
        self._send(mount, message)

    def _send(self, mount: str, message: dict[str, Any]) -> None:
        self._client.send(self._workflows(f"{mount}.")[-1].workflow_id, message, CONTROL)

    def wait_until(self, mount: str, condition: Callable[[MountRecord], bool], seconds: float) -> MountRecord:
        """The mount's record as soon as it is final or fulfils a condition, or after so long as it is then."""
        deadline = time.monotonic() + seconds
        record = self.record(mount)
        for record in self.watch(mount):
            if condition(record) or time.monotonic() > deadline:
                break
        return record

    def watch(self, mount: str, period: float = 0.3) -> Iterator[MountRecord]:
        """The mount's record, again and again every `period` seconds, until it is in a final state (included).

        Raises `NotFoundError`, and `UnavailableError` when nothing is done about it though it does not wait.
        """
        known = self._workflows(f"{mount}.")
        if not known:
            raise NotFoundError(f"there is no mount {mount!r}")
        id = known[-1].workflow_id
        idle = time.monotonic()
        while True:
            (workflow,) = self._client.list_workflows(workflow_ids=[id], load_input=False, load_output=False)
            record = self._record(workflow)
            if workflow.status != "ENQUEUED":
                idle = time.monotonic()
            yield record
            if record.state.final and (workflow.name == "mount" or workflow.status not in ("ENQUEUED", "PENDING")):
                return
            if time.monotonic() - idle > BEGIN_SECONDS:
                raise UnavailableError(
                    f"the manager has not begun with the mount {mount} within {BEGIN_SECONDS:.0f} s",
                    hint="`livemount doctor` looks at it",
                )
            self._client.get_event(id, "never", timeout_seconds=period)
