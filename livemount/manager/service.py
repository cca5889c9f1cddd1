"""The manager's service: the process in which the durable workflows of an environment run.

One a database: a lock file keeps a second one out and tells clients that the first one lives. Killed and started
again it goes on with every mount where it was.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from dbos import DBOS, DBOSConfig

from livemount.core.errors import ConflictError
from livemount.core.settings import EnvironmentPaths, Settings
from livemount.workflow import mount, policies
from livemount.workflow.mount import Stacks
from livemount.workflow.policies import Scheduler

log = logging.getLogger(__name__)

APPLICATION = "livemount"
APPLICATION_VERSION = "1"
"""Pinned: running mounts survive an upgrade. Raised only when the steps of a workflow change in kind."""
EXECUTOR = "manager"
QUEUE = "mounts"
LOOK_SECONDS = 1.0
"""Between two looks at what policies are due."""


def database_url(paths: EnvironmentPaths) -> str:
    """Where the workflows of an environment are recorded."""
    return f"sqlite:///{paths.database}"


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError("the manager of this environment runs already") from error
        yield


def is_alive(lock: Path) -> bool:
    """Whether the manager's service runs."""
    try:
        with lock.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _schedule(settings: Settings, stop: threading.Event) -> None:
    """Start the policies that are due, until the process is told to end."""
    scheduler = Scheduler(settings, APPLICATION_VERSION)
    told = ""
    while not stop.wait(LOOK_SECONDS):
        try:
            scheduler.look()
            told = ""
        except Exception as error:  # whatever it is, the next look may do better, and the mounts go on
            if str(error) != told:
                log.exception("the policies cannot be looked at")
            told = str(error)


def serve(settings: Settings, stacks: Stacks) -> NoReturn:
    """Run the workflows until the process is told to end; ends it. What runs is cut off, as by a kill, and goes on at
    the next start. Raises `ConflictError` when another one runs.
    """
    paths = settings.paths()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with _only_one(paths.manager_lock):
        mount.use(stacks)
        policies.use(settings)
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": database_url(paths),
            "application_version": APPLICATION_VERSION,
            "executor_id": EXECUTOR,
            "notification_listener_polling_interval_sec": 0.2,
        }
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(QUEUE, polling_interval_sec=0.2)
        DBOS.register_queue(policies.QUEUE, worker_concurrency=policies.AT_ONCE, polling_interval_sec=1)
        scheduling = threading.Thread(target=_schedule, args=(settings, stop), name="scheduler")
        scheduling.start()
        log.info("the manager of %s is ready", paths.name)
        stop.wait()
        scheduling.join()
        # Workflows under way are not waited for: a mount's lease may last for days. They go on at the next start.
        DBOS.destroy(workflow_completion_timeout_sec=0)
        # A plain end of the interpreter would wait for the threads of their steps, and a backup may take hours.
        logging.shutdown()
        os._exit(0)
