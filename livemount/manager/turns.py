"""Whose turn it is: a host and each of its users have only so many mounts at a time, others wait, in their order.

Every mount's workflow begins at once and waits for the word to go on; so one that waits can be extended and ended like
any other. That the word was given is an attribute of the workflow, set before it is sent; and it is sent under a key
that makes a second one the same. Killed between the two, the service sends it again: no turn is lost or given twice.
DBOS's own limits of queues are of no use here: after a restart all that runs is queued again, and waits behind others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from dbos import DBOS, WorkflowStatus
from pydantic import Field, ValidationError

from livemount.core.errors import CorruptError
from livemount.core.files import replace_file
from livemount.core.machine import Frozen
from livemount.workflow.mount import CONTROL, GO

log = logging.getLogger(__name__)

MOST = 10_000
LOOK_SECONDS = 0.1
TURN = "turn"
"""The attribute of a mount's workflow: whether it was its turn. Without it the workflow is of an earlier version."""
OWNER = "owner"
UNFINISHED = ["ENQUEUED", "PENDING"]
"""What DBOS calls workflows that are not over."""


class Limits(Frozen):
    """Mounts at a time."""

    host: int = Field(default=32, ge=1, le=MOST)
    user: int = Field(default=16, ge=1, le=MOST)

    @classmethod
    def read(cls, file: Path) -> Limits:
        """Those in force. Raises `CorruptError`."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except FileNotFoundError:
            return cls()
        except ValidationError as error:
            raise CorruptError(f"{file} holds no limits", hint="`livemount limits --host 32 --user 16`") from error

    def write(self, file: Path) -> None:
        """Bring them into force."""
        replace_file(file, self.model_dump_json().encode())


def waiting(unfinished: Iterable[WorkflowStatus]) -> list[WorkflowStatus]:
    """Those whose turn has not come, in their order."""
    return [workflow for workflow in unfinished if (workflow.attributes or {}).get(TURN) is False]


def due(unfinished: Iterable[WorkflowStatus], limits: Limits) -> list[WorkflowStatus]:
    """Whose turn it is now, of mounts' workflows in the order in which they were asked for."""
    everything = list(unfinished)
    queue = waiting(everything)
    ids = {workflow.workflow_id for workflow in queue}
    users = Counter(_owner(workflow) for workflow in everything if workflow.workflow_id not in ids)
    room = limits.host - users.total()
    found: list[WorkflowStatus] = []
    for workflow in queue:
        if len(found) < room and users[_owner(workflow)] < limits.user:
            users[_owner(workflow)] += 1
            found.append(workflow)
    return found


def _owner(workflow: WorkflowStatus) -> str:
    return str((workflow.attributes or {}).get(OWNER, ""))


class Turns:
    """Gives the word, within the manager's service. Not for several threads."""

    def __init__(self, limits: Path) -> None:
        self._limits = limits
        self._told: set[str] = set()

    def look(self) -> None:
        """Let all go on whose turn it is."""
        unfinished = DBOS.list_workflows(name="mount", status=UNFINISHED, load_input=False, load_output=False)
        ready = [each for each in unfinished if (each.attributes or {}).get(TURN) is True]
        if waiting(unfinished):
            for workflow in due(unfinished, Limits.read(self._limits)):
                DBOS.update_workflow_attributes(workflow.workflow_id, {TURN: True}, merge=True)
                ready.append(workflow)
        for workflow in ready:
            id = workflow.workflow_id
            if id not in self._told:
                DBOS.send(id, {"kind": GO}, CONTROL, idempotency_key=f"{id}.{GO}")
                self._told.add(id)
        self._told &= {workflow.workflow_id for workflow in unfinished}

    def run(self, stop: threading.Event) -> None:
        """Look again and again, until the process is told to end."""
        told = ""
        while not stop.wait(LOOK_SECONDS):
            try:
                self.look()
                told = ""
            except Exception as error:  # whatever it is, the next look may do better
                if str(error) != told:
                    log.exception("mounts that wait for their turn cannot be looked at")
                told = str(error)
