"""How the command line (and whoever comes next) asks for mounts, watches them and ends them.

Talks to the workflows through their database, so that nothing is lost when the manager's service is down for a while.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dbos import DBOSClient
from dbos import error as dbos_error

from livemount.core.errors import ConflictError, NotFoundError, UnavailableError
from livemount.core.settings import EnvironmentPaths
from livemount.manager.service import APPLICATION_VERSION, QUEUE, database_url, is_alive
from livemount.workflow.mount import CONTROL, RECORD, dump
from livemount.workflow.states import MountOrder, MountRecord, MountState


def _taken(mount: str) -> ConflictError:
    return ConflictError(
        f"there is a mount {mount} already", hint=f"`livemount unmount {mount}` first, or use another name"
    )


class Manager:
    """The mounts of one environment."""

    def __init__(self, paths: EnvironmentPaths) -> None:
        """Raises `UnavailableError` when the environment has no manager that runs."""
        if not paths.database.exists() or not is_alive(paths.manager_lock):
            raise UnavailableError(
                f"the manager of the environment {paths.name!r} does not run",
                hint="`livemount environment up` makes the environment and starts it",
            )
        self._client = DBOSClient(system_database_url=database_url(paths))

    def close(self) -> None:
        """Let go of the database."""
        self._client.destroy()

    def request(self, order: MountOrder) -> None:
        """Ask for a mount. Raises `ConflictError` when its name is taken by one that is not over."""
        known = self.find(order.mount)
        if known is not None and (known.left or not known.state.final):
            raise _taken(order.mount)
        self._enqueue("mount", order.mount, dump(order))

    def _enqueue(self, workflow: str, mount: str, data: dict[str, Any]) -> None:
        """Start a workflow of a mount; the database lets only one of a mount run at a time."""
        try:
            self._client.enqueue(
                {
                    "workflow_name": workflow,
                    "queue_name": QUEUE,
                    "workflow_id": f"{mount}.{self._generation(mount)}",
                    "deduplication_id": mount,
                    "app_version": APPLICATION_VERSION,
                },
                data,
            )
        except dbos_error.DBOSQueueDeduplicatedError as error:
            raise _taken(mount) from error

    def _ids(self, prefix: str) -> list[str]:
        """The ids of the mounts' workflows, oldest first."""
        workflows = self._client.list_workflows(
            name=["mount", "clean"], workflow_id_prefix=prefix, load_input=False, load_output=False
        )
        return [workflow.workflow_id for workflow in workflows]

    def _generation(self, mount: str) -> int:
        """How many workflows have had this name: a name may be used again after its mount has ended."""
        return len(self._ids(f"{mount}."))

    def _record(self, id: str) -> MountRecord | None:
        value = self._client.get_event(id, RECORD, timeout_seconds=0)
        if value is not None:
            return MountRecord.model_validate(value)
        return None

    def find(self, mount: str) -> MountRecord | None:
        """The newest record of this name, or `None`."""
        ids = self._ids(f"{mount}.")
        return self._record(ids[-1]) if ids else None

    def record(self, mount: str) -> MountRecord:
        """The newest record of this name. Raises `NotFoundError`."""
        found = self.find(mount)
        if found is None:
            names = ", ".join(record.order.mount for record in self.records()) or "none"
            raise NotFoundError(f"there is no mount {mount!r}", hint=f"mounts: {names}")
        return found

    def records(self, *, ended: bool = False) -> list[MountRecord]:
        """The mounts, oldest first; `ended`: those that are over (and left nothing) as well."""
        newest: dict[str, MountRecord] = {}
        for id in self._ids(""):
            record = self._record(id)
            if record is not None:
                newest[record.order.mount] = record
        return [record for record in newest.values() if ended or record.left or not record.state.final]

    def stop(self, mount: str, reason: str) -> None:
        """Tell a mount to end; returns at once. One that failed and left something is taken away again."""
        record = self.record(mount)
        if record.left:
            self._enqueue("clean", mount, dump(record))
        elif not record.state.final and record.state is not MountState.ENDING:
            self._client.send(self._ids(f"{mount}.")[-1], {"kind": "stop", "reason": reason}, CONTROL)

    def watch(self, mount: str, period: float = 0.3) -> Iterator[MountRecord]:
        """The mount's record, again and again every `period` seconds, until it is in a final state (included)."""
        id = self._wait_for_record(mount)
        while True:
            record = self._record(id)
            if record is not None:
                yield record
                if record.state.final:
                    return
            self._client.get_event(id, "never", timeout_seconds=period)

    def _wait_for_record(self, mount: str) -> str:
        ids = self._ids(f"{mount}.")
        if not ids:
            raise NotFoundError(f"there is no mount {mount!r}")
        if self._client.get_event(ids[-1], RECORD, timeout_seconds=60) is None:
            raise UnavailableError(
                f"the manager has not begun with the mount {mount} within 60 s", hint="`livemount doctor` looks at it"
            )
        return ids[-1]
