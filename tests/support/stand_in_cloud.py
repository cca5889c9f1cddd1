"""A stand-in for a cloud: its mounts are files, so a life of one takes seconds; and the manager's service on it.

`python -m tests.support.stand_in_cloud` is the service under a supervisor that starts it again whenever it is killed.
It forks: what takes long to import is imported once. A file `MOUNT MOMENT` in the folder `kills` asks for a kill of the
service: after so many recorded steps of this mount's workflow, or at a place within a step. It is removed just before,
so that this happens once.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from dbos import DBOS

from livemount.core.errors import LivemountError
from livemount.core.machine import Copy, MachineDescription
from livemount.core.settings import Settings
from livemount.manager.client import Manager
from livemount.manager.service import serve
from livemount.workflow import mount
from livemount.workflow.states import MountOrder

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0
"""Seconds that a test waits for what takes one."""
PLACES = ("up.begins", "up.made", "destroy.begins", "destroy.gone")
STEPS = ("_now", "_up", "_is_up", "_warn_before", "_destroy", "_tell")
"""The recorded steps of `livemount.workflow.mount`, as its functions are called."""


class StandInCloud:
    """What the workflow needs of stacks; a mount is a file in `here`, its making and its end are lines of `journal`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.here = folder / "here"
        self.here.mkdir(parents=True, exist_ok=True)
        (folder / "kills").mkdir(exist_ok=True)

    def up(self, order: MountOrder) -> dict[str, Any]:
        """Make the mount's file."""
        kill_at(self.folder, order.mount, "up.begins")
        if "broken" in order.mount:
            raise LivemountError("the stand-in cloud makes no such thing", hint="name it otherwise")
        try:
            with (self.here / order.mount).open("x") as file:
                file.write(order.owner)
            self._tell("made", order.mount)
        except FileExistsError:
            self._tell("found", order.mount)
        kill_at(self.folder, order.mount, "up.made")
        return {"mount": order.mount, "address": "192.0.2.1"}

    def destroy(self, mount: str) -> None:
        """Remove it."""
        kill_at(self.folder, mount, "destroy.begins")
        try:
            (self.here / mount).unlink()
            self._tell("gone", mount)
        except FileNotFoundError:
            self._tell("none", mount)
        kill_at(self.folder, mount, "destroy.gone")

    def is_up(self, order: MountOrder) -> bool:
        """At once."""
        return (self.here / order.mount).exists()

    def console_tail(self, outputs: dict[str, Any]) -> str:
        """There is no console."""
        return str(outputs)

    def _tell(self, what: str, mount: str) -> None:
        # One write to a file opened for appending is not mixed with another's.
        with (self.folder / "journal").open("a") as file:
            file.write(f"{what} {mount} {' '.join(sorted(path.name for path in self.here.iterdir()))}\n")

    def journal(self, mount: str | None = None) -> list[str]:
        """What was done, in order, of this mount."""
        try:
            lines = (self.folder / "journal").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line.split()[0] for line in lines if mount in (None, line.split()[1])]


def kill_at(folder: Path, mount: str, place: str) -> None:
    """Kill this process, if that was asked for at this place of this mount."""
    try:
        (folder / "kills" / f"{mount} {place}").unlink()
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


def _counted(folder: Path) -> None:
    """Count what each mount's workflow has recorded, and be killed after the step that was asked for."""
    counts: dict[str, int] = {}

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            result = function(*arguments, **named)
            name = str(DBOS.workflow_id).rpartition(".")[0]
            counts[name] = counts.get(name, 0) + 1
            kill_at(folder, name, str(counts[name]))
            return result

        return wrapper

    for name in STEPS:
        setattr(mount, name, wrap(getattr(mount, name)))
    for name in ("set_event", "recv"):
        setattr(DBOS, name, staticmethod(wrap(getattr(DBOS, name))))


def main() -> None:
    """Serve, and start the service again whenever it is killed, until this process is told to end."""
    settings = Settings()
    folder = settings.home / "cloud"
    folder.mkdir(parents=True, exist_ok=True)
    ending = False
    child = 0

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while not ending:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s: %(message)s")
            _counted(folder)
            serve(settings, StandInCloud(folder))
        (folder / "pid").write_text(str(child))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        _, status = os.waitpid(child, 0)
        if not (ending or os.WIFSIGNALED(status)):
            raise SystemExit(f"the service ended by itself: {status}")


class StandIn:
    """The service on the stand-in cloud, as tests use it."""

    def __init__(self, settings: Settings, process: subprocess.Popen[bytes]) -> None:
        self.settings = settings
        self.folder = settings.home / "cloud"
        self.cloud = StandInCloud(self.folder)
        self.process = process

    def manager(self) -> Manager:
        """A client of the service, once it runs."""
        manager: list[Manager] = []

        def ready() -> bool:
            try:
                manager.append(Manager(self.settings.paths()))
            except LivemountError:
                return False
            return True

        self.wait_for(ready, "the service runs")
        return manager[0]

    def wait_for(
        self, condition: Callable[[], object], what: str, seconds: float = PATIENCE, period: float = 0.05
    ) -> None:
        """Wait until something is so, looking every `period` seconds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"the service has ended; {self.log()}"
            assert time.monotonic() < deadline, f"timed out: {what}; {self.log()}"
            time.sleep(period)

    def log(self) -> str:
        """The end of the service's log."""
        return (self.settings.home / "log").read_text()[-3000:]

    def pid(self) -> int:
        """Of the service, which is another one after each kill."""
        return int((self.folder / "pid").read_text())

    def kill_at(self, mount: str, place: str | int) -> None:
        """Ask for a kill."""
        (self.folder / "kills" / f"{mount} {place}").touch()

    def killed(self, mount: str, place: str | int) -> bool:
        """Whether that has been done."""
        return not (self.folder / "kills" / f"{mount} {place}").exists()


@contextmanager
def stand_in(**environment: str) -> Iterator[StandIn]:
    """Run the service on a stand-in cloud, with these variables in its environment."""
    # In memory: thousands of commits need not wait for a disk, since no power is cut here.
    folder = tempfile.TemporaryDirectory(prefix="livemount-", dir="/dev/shm")
    with folder as home, _served(Path(home), environment) as running:
        yield running


@contextmanager
def _served(home: Path, environment: Mapping[str, str]) -> Iterator[StandIn]:
    settings = Settings(home=home, environment="standin")
    settings.paths().manager.mkdir(parents=True)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stand_in_cloud"],
            cwd=ROOT,
            env={**os.environ, "LIVEMOUNT_HOME": str(home), "LIVEMOUNT_ENVIRONMENT": "standin", **environment},
            stdout=log,
            stderr=log,
        )
    running = StandIn(settings, process)
    try:
        with closing(running.manager()):
            yield running
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()


def an_order(name: str, *, owner: str = "", ttl: timedelta = timedelta(hours=1), **more: Any) -> MountOrder:
    """An order of a mount."""
    copy = Copy(
        id="ab" * 32, name="web01", time=datetime(2026, 1, 1, tzinfo=UTC), size=2**30, stored=2**20,
        description=MachineDescription(), source="file:///nowhere",
    )  # fmt: skip
    return MountOrder(mount=name, copy=copy, expires=datetime.now(UTC) + ttl, owner=owner, **more)


if __name__ == "__main__":
    main()
