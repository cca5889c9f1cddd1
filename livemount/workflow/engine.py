"""One call of Pulumi's Automation API on one stack: a process of its own, started by `livemount.workflow.stack`.

Reads a `Job` from its input, prints a JSON object a line: `{"event": ...}` as things happen and at last
`{"result": ...}` or `{"error": ...}`. A process and not a thread of the service, because an inline program's gRPC
server, event loop and Pulumi's global settings live in the process that calls it, and because the engine, its plug-ins
and this process are then one session: whoever finds them left behind by a killed service can end exactly them.

Crash contract: a killed engine leaves its lock and, in the state, the operations that were under way. The next call
removes the lock when its process is dead, deletes what those creations may have left (our resources are identified by
their inputs, which the state has), and forgets the operations. So nothing of a stack is lost to its state.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pulumi import automation as auto
from pulumi.automation import events
from pydantic import Field

from infra.api import EnvironmentOutputs, EnvironmentRequest, MountRequest
from infra.environment import environment_program
from infra.mount import mount_program
from livemount.core.errors import ConflictError, LivemountError
from livemount.core.machine import Frozen
from livemount.provider import registry
from livemount.provider.problems import parse
from livemount.workflow.stack_events import StackEvent, StackEventKind

SECRETS_PROVIDER = "passphrase"


class Operation(StrEnum):
    """What is done to a stack."""

    UP = "up"
    DESTROY = "destroy"
    """Delete its resources, and then the stack with all that is kept of it."""
    REFRESH = "refresh"


class MountProgram(Frozen):
    """The program of one mount."""

    kind: Literal["mount"] = "mount"
    request: MountRequest
    environment: EnvironmentOutputs

    def run(self) -> None:
        """Declare its resources."""
        mount_program(self.request, self.environment)


class EnvironmentProgram(Frozen):
    """The program of an environment."""

    kind: Literal["environment"] = "environment"
    request: EnvironmentRequest

    def run(self) -> None:
        """Declare its resources."""
        environment_program(self.request)


class Job(Frozen):
    """One operation on one stack."""

    operation: Operation
    project: str
    stack: str
    work_dir: Path
    """The stack's own folder: its settings; deleted with it."""
    state: Path
    """Folder of the file backend."""
    program: MountProgram | EnvironmentProgram | None = Field(default=None, discriminator="kind")
    """Needed by `up` only."""


class _Reporter:
    """Turns the engine's events into ours, and keeps its errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __call__(self, event: events.EngineEvent) -> None:
        """Take one event of the engine."""
        if event.diagnostic_event is not None:
            diagnostic = event.diagnostic_event
            text = diagnostic.message.strip()
            if text.startswith("using pulumi-resource-"):  # our provider on PATH is how it is meant to be found
                return
            if diagnostic.severity == "error":
                self.errors.append(text)
            if diagnostic.severity in ("error", "warning") and not diagnostic.ephemeral:
                kind = StackEventKind.ERROR if diagnostic.severity == "error" else StackEventKind.WARNING
                _emit(event=_step(kind, diagnostic.urn or "", text))
        elif event.resource_pre_event is not None:
            metadata = event.resource_pre_event.metadata
            _step_of(metadata, StackEventKind.BEGUN)
        elif event.res_outputs_event is not None:
            _step_of(event.res_outputs_event.metadata, StackEventKind.DONE)

    def raised(self, fallback: str) -> LivemountError:
        """The error of a failed operation: what our provider said, else what the engine said."""
        for text in self.errors:
            if (known := parse(text)) is not None:
                return known
        said = "; ".join(text for text in self.errors if not text.endswith("failed")) or fallback.strip()[-2000:]
        return LivemountError(said)


def _step_of(metadata: events.StepEventMetadata, kind: StackEventKind) -> None:
    verbs = {
        auto.OpType.CREATE: "create",
        auto.OpType.UPDATE: "update",
        auto.OpType.DELETE: "delete",
        auto.OpType.REPLACE: "replace",
    }
    if metadata.op in verbs and not metadata.type.startswith("pulumi:"):
        _emit(event=_step(kind, metadata.urn, verbs[metadata.op]))


def _step(kind: StackEventKind, urn: str, text: str) -> dict[str, Any]:
    parts = urn.split("::")
    name = parts[-1] if len(parts) > 1 else ""
    type_ = parts[-2].rpartition("$")[2] if len(parts) > 1 else ""
    return StackEvent(kind=kind, resource=name, type=type_, text=text).model_dump(mode="json")


def _emit(**line: Any) -> None:
    print(json.dumps(line), flush=True)


class Engine:
    """The stack of a job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def run(self) -> dict[str, Any] | None:
        """Do the job and return the stack's outputs, `None` when there is no such stack any more."""
        job = self._job
        try:
            stack = self._stack(create=job.operation is Operation.UP)
        except auto.StackNotFoundError:
            self._forget()
            return None
        self._recover(stack)
        reporter = _Reporter()
        try:
            if job.operation is Operation.UP:
                outputs = stack.up(on_event=reporter, on_output=None, color="never").outputs
                return {name: output.value for name, output in outputs.items()}
            if job.operation is Operation.REFRESH:
                stack.refresh(on_event=reporter, color="never")
                return {name: output.value for name, output in stack.outputs().items()}
            stack.destroy(on_event=reporter, color="never")
        except auto.ConcurrentUpdateError as error:
            raise ConflictError(f"another Pulumi works on the stack {job.stack}", hint="wait for its end") from error
        except auto.CommandError as error:
            raise reporter.raised(str(error)) from error
        stack.workspace.remove_stack(job.stack)
        self._forget()
        return None

    def _stack(self, *, create: bool) -> auto.Stack:
        job = self._job
        job.work_dir.mkdir(parents=True, exist_ok=True)
        project = auto.ProjectSettings(
            name=job.project,
            runtime="python",
            main=str(job.work_dir),
            backend=auto.ProjectBackend(f"file://{job.state}"),
        )
        options = auto.LocalWorkspaceOptions(
            work_dir=str(job.work_dir), project_settings=project, secrets_provider=SECRETS_PROVIDER
        )
        program = job.program.run if job.program is not None else _no_program
        # Looked for here, because asking the CLI for a stack that is not there yet takes as long as any call of it.
        known = (job.state / ".pulumi" / "stacks" / job.project / f"{job.stack}.json").exists()
        begin = auto.create_stack if create and not known else auto.select_stack
        return begin(stack_name=job.stack, project_name=job.project, program=program, opts=options)

    def _recover(self, stack: auto.Stack) -> None:
        """Make good what a killed engine left; see the top."""
        locks = list(
            (self._job.state / ".pulumi" / "locks").glob(f"organization/{self._job.project}/{self._job.stack}/*.json")
        )
        if not locks:
            return
        for lock in locks:
            holder = json.loads(lock.read_text())
            if holder["hostname"] != socket.gethostname() or Path(f"/proc/{holder['pid']}").exists():
                raise ConflictError(
                    f"the stack {self._job.stack} is locked by process {holder['pid']} on {holder['hostname']}",
                    hint="wait for its end",
                )
        stack.cancel()
        exported = stack.export_stack()
        deployment = dict(exported.deployment or {})
        pending = deployment.pop("pending_operations", None) or []
        for operation in pending:
            if operation["type"] == "creating" and operation["resource"]["type"] in registry.RESOURCES:
                resource = operation["resource"]
                registry.delete(resource["type"], resource["inputs"])
                _emit(event=_step(StackEventKind.RECOVERED, resource["urn"], "removed what a killed engine left"))
        if pending:
            stack.import_stack(auto.Deployment(version=exported.version, deployment=deployment))

    def _forget(self) -> None:
        """Delete what Pulumi keeps of a stack that is gone: history, backups, its folder."""
        kept = self._job.state / ".pulumi"
        for kind in ("history", "backups", "locks", "stacks"):
            for folder in (kept / kind, kept / kind / "organization"):
                place = folder / self._job.project
                shutil.rmtree(place / self._job.stack, ignore_errors=True)
                for entry in place.glob(f"{self._job.stack}.json*"):
                    entry.unlink(missing_ok=True)
        shutil.rmtree(self._job.work_dir, ignore_errors=True)


def _no_program() -> None:
    raise AssertionError("a destroy or refresh runs no program")


def main() -> None:
    """Do the job that is on the input."""
    # What the engine and its plug-ins print by accident must not get between our lines.
    job = Job.model_validate_json(sys.stdin.read())
    try:
        _emit(result=Engine(job).run())
    except LivemountError as error:
        _emit(error={"message": error.message, "hint": error.hint, "exit_code": int(error.exit_code)})
        os._exit(1)


if __name__ == "__main__":
    main()
