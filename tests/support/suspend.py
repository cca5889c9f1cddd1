"""Processes that are stopped for a while, as one that hangs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def suspend(pid: int) -> None:
    """Stop a process (SIGSTOP), and wait until none of its threads runs: a signal takes its time to reach them.

    Raises:
        AssertionError: one still runs after 60 s.
        ProcessLookupError: there is no such process.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 60
    while _runs(pid):
        assert time.monotonic() < deadline, f"process {pid} does not stop"
        time.sleep(0.005)


def _runs(pid: int) -> bool:
    states = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            states.append((thread / "stat").read_text().rpartition(")")[2].split()[0])
        except (FileNotFoundError, ProcessLookupError):  # it ended
            continue
    return any(state not in "TtZX" for state in states)
