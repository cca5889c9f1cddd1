"""The Pulumi stacks of an environment: its own, and one for each mount. Every call is idempotent.

Concurrency: one operation a stack at a time, over all processes: its lock file is held during the operation, and a
second caller gets a `ConflictError`. Operations of different stacks run side by side.
Crash contract: the operation runs in a session of its own (`livemount.workflow.engine`). When its caller is killed, the
session goes on; the next call on the stack ends it (the engine is asked first, so that it finishes what is under way),
and the engine's own recovery does the rest.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import livemount
from infra.api import EnvironmentOutputs, EnvironmentRequest, MountRequest
from infra.clouds import cloud
from infra.environment import PROJECT as ENVIRONMENT_PROJECT
from infra.mount import PROJECT as MOUNT_PROJECT
from livemount.core.errors import ConflictError, LivemountError, NotFoundError, UsageError, error_of
from livemount.core.machine import is_name
from livemount.core.secrets import secret_file
from livemount.core.settings import EnvironmentPaths, Settings
from livemount.host.client import HostClient
from livemount.workflow.engine import EnvironmentProgram, Job, MountProgram, Operation
from livemount.workflow.stack_events import StackEvent

OnEvent = Callable[[StackEvent], None]

ENGINE_GRACE = 60.0
"""Seconds an engine without a caller has to finish what is under way."""
_KILL_SECONDS = 10.0


def pulumi_environment(paths: EnvironmentPaths, settings: Settings) -> dict[str, str]:
    """The environment variables under which Pulumi works on an environment's stacks; `setup/env` sets them."""
    root = str(Path(livemount.__file__).parents[1])
    path = [str(Path(sys.executable).parent), str(settings.cache / "pulumi-bin"), os.environ.get("PATH", os.defpath)]
    return {
        "PATH": os.pathsep.join(path),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PULUMI_HOME": str(paths.pulumi / "home"),
        "PULUMI_BACKEND_URL": f"file://{paths.pulumi / 'state'}",
        "PULUMI_CONFIG_PASSPHRASE_FILE": str(paths.passphrase),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
        "PULUMI_AUTOMATION_API_SKIP_VERSION_CHECK": "true",
        "LIVEMOUNT_HOME": str(paths.root.parent),
        "LIVEMOUNT_ENVIRONMENT": paths.name,
        "LIVEMOUNT_CACHE": str(settings.cache),
    }


def prepare(paths: EnvironmentPaths) -> None:
    """Make the folders and the passphrase that Pulumi needs."""
    for folder in ("state", "home"):
        (paths.pulumi / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
    secret_file(paths.passphrase)


class Stack:
    """One stack of an environment."""

    def __init__(self, paths: EnvironmentPaths, settings: Settings, project: str, name: str, work_dir: Path) -> None:
        self.name = name
        self._paths = paths
        self._settings = settings
        self._project = project
        self._work_dir = work_dir
        self._state_file = paths.pulumi / "state" / ".pulumi" / "stacks" / project / f"{name}.json"

    def exists(self) -> bool:
        """Whether there is anything of the stack: a state, or a folder that an interrupted call has left."""
        return self._state_file.exists() or self._work_dir.exists()

    def refresh(self, on_event: OnEvent | None = None) -> None:
        """Look at all resources and bring the state to what is there."""
        if self.exists():
            self._run(Operation.REFRESH, None, on_event)

    def outputs(self) -> dict[str, Any]:
        """What the last `up` exported. Raises `NotFoundError`."""
        try:
            state = json.loads(self._state_file.read_text())
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no stack {self.name}") from error
        resources = (state["checkpoint"]["latest"] or {}).get("resources") or []
        found = [entry for entry in resources if entry["type"] == "pulumi:pulumi:Stack"]
        return dict(found[0].get("outputs") or {}) if found else {}

    def _run(
        self, operation: Operation, program: MountProgram | EnvironmentProgram | None, on_event: OnEvent | None
    ) -> dict[str, Any]:
        prepare(self._paths)
        job = Job(
            operation=operation,
            project=self._project,
            stack=self.name,
            work_dir=self._work_dir,
            state=self._paths.pulumi / "state",
            program=program,
        )
        with self._alone() as session_file:
            _end_session(session_file)
            return self._child(job, session_file, on_event)

    @contextmanager
    def _alone(self) -> Iterator[Path]:
        """Hold the stack's lock; gives the file that names the session of its last operation."""
        folder = self._paths.pulumi / "locks" / self._project
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConflictError(
                    f"another operation runs on the stack {self.name}", hint="wait for its end and try again"
                ) from error
            yield path
        finally:
            os.close(descriptor)

    def _child(self, job: Job, session_file: Path, on_event: OnEvent | None) -> dict[str, Any]:
        """Run the engine's process and hand on its events. Raises what it says."""
        log = self._paths.pulumi / "engine.log"
        with log.open("ab") as errors:
            begin = errors.tell()
            process = subprocess.Popen(
                [sys.executable, "-m", "livemount.workflow.engine"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **pulumi_environment(self._paths, self._settings)},
                cwd=self._paths.pulumi,
                start_new_session=True,
                text=True,
            )
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        with process:
            session_file.write_text(json.dumps({"session": process.pid, "began": _began(process.pid)}))
            process.stdin.write(job.model_dump_json())
            process.stdin.close()
            answer: dict[str, Any] = {}
            for line in process.stdout:
                answer = json.loads(line)
                if "event" in answer and on_event is not None:
                    on_event(StackEvent.model_validate(answer["event"]))
        if "error" in answer:
            error = answer["error"]
            raise error_of(error["exit_code"], error["message"], error["hint"])
        if "result" not in answer:
            said = log.read_bytes()[begin:].decode(errors="replace").strip()[-1000:]
            raise LivemountError(
                f"Pulumi ended in the middle of {job.operation} of the stack {self.name}: {said or 'it was killed'}",
                hint="the next command goes on from there",
            )
        session_file.unlink(missing_ok=True)
        return dict(answer["result"] or {})


class MountStack(Stack):
    """The stack of one mount."""

    def __init__(self, paths: EnvironmentPaths, settings: Settings, name: str) -> None:
        if not is_name(name):
            raise UsageError(f"{name!r} cannot name a mount")
        super().__init__(paths, settings, MOUNT_PROJECT, name, paths.pulumi / "mounts" / name)

    def up(self, request: MountRequest, on_event: OnEvent | None = None) -> dict[str, Any]:
        """Make the mount, or what is missing of it, and return the stack's outputs."""
        program = MountProgram(request=request, environment=EnvironmentOutputs.load(self._paths))
        return self._run(Operation.UP, program, on_event)

    def destroy(self, on_event: OnEvent | None = None) -> None:
        """Take the mount away; returns when nothing of it is left, in the cloud, on the host or in files."""
        if self.exists():
            self._run(Operation.DESTROY, None, on_event)
        self._sweep()

    def _sweep(self) -> None:
        """Delete by name what no state knew of."""
        try:
            environment = EnvironmentOutputs.load(self._paths)
        except NotFoundError:
            return
        cloud(environment.cloud).sweep(self.name, environment)
        with HostClient(environment.endpoint, environment.token_file, environment.ca_file) as host:
            host.delete_pseudo_disk(self.name)


class EnvironmentStack(Stack):
    """The stack of the environment itself: the same that `pulumi up` in the project's folder works on."""

    def __init__(self, paths: EnvironmentPaths, settings: Settings) -> None:
        super().__init__(paths, settings, ENVIRONMENT_PROJECT, paths.name, paths.pulumi / "environment")

    def up(self, request: EnvironmentRequest | None = None, on_event: OnEvent | None = None) -> EnvironmentOutputs:
        """Make the environment, or bring it to what is asked for."""
        request = request or EnvironmentRequest.of(self._settings)
        self._run(Operation.UP, EnvironmentProgram(request=request), on_event)
        return EnvironmentOutputs.load(self._paths)

    def destroy(self, on_event: OnEvent | None = None) -> None:
        """Take the environment away, with all of Pulumi's files. Raises `ConflictError` while there are mounts."""
        if mounts := mount_stacks(self._paths):
            raise ConflictError(f"there are mounts: {', '.join(mounts)}", hint="`livemount unmount` them first")
        if self.exists():
            self._run(Operation.DESTROY, None, on_event)
        shutil.rmtree(self._paths.pulumi, ignore_errors=True)
        self._paths.passphrase.unlink(missing_ok=True)


def mount_stacks(paths: EnvironmentPaths) -> list[str]:
    """The names of all mounts that have anything of a stack."""
    states = (paths.pulumi / "state" / ".pulumi" / "stacks" / MOUNT_PROJECT).glob("*.json")
    folders = (paths.pulumi / "mounts").glob("*")
    return sorted({*(path.stem for path in states), *(path.name for path in folders)})


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the program's name (proc(5): 0 is the state, 3 the session, 19 the start)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def _began(pid: int) -> str | None:
    fields = _stat(pid)
    return None if fields is None else fields[19]


def _members(session: int) -> list[int]:
    """The living processes of a session."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in pids if (fields := _stat(pid)) is not None and fields[3] == str(session)]


def _end_session(session_file: Path) -> None:
    """End what is left of an operation whose caller was killed."""
    try:
        known = json.loads(session_file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    leader = _began(known["session"])
    # The number of a session is not given again while a process is in it; but once all have ended, it may be another's.
    if leader is not None and leader != known["began"]:
        return
    for number, seconds in ((signal.SIGINT, ENGINE_GRACE), (signal.SIGKILL, _KILL_SECONDS)):
        members = _members(known["session"])
        for pid in members:
            # Only Pulumi itself is asked: it waits for its plug-ins, then ends them and lets its caller end.
            if number == signal.SIGKILL or Path(f"/proc/{pid}/comm").read_text().strip() == "pulumi":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        deadline = time.monotonic() + seconds
        while _members(known["session"]) and time.monotonic() < deadline:
            time.sleep(0.05)
    if left := _members(known["session"]):
        raise ConflictError(f"processes {left} of an earlier operation do not end")
    session_file.unlink(missing_ok=True)


def main() -> None:
    """Print what a shell needs to run `pulumi` by hand on the settings' environment (`setup/env`)."""
    settings = Settings()
    paths = settings.paths()
    prepare(paths)
    for name, value in pulumi_environment(paths, settings).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
