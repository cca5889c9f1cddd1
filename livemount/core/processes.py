"""Processes by names that no other ever has, so that one that was killed is known to be gone."""

from __future__ import annotations

import os
from pathlib import Path


def this_process() -> str:
    """The name of this process: the machine's boot, the namespace of process numbers, the number, the start."""
    pid = os.getpid()
    return " ".join([*_place(), str(pid), str(_began(pid))])


def is_gone(process: str) -> bool | None:
    """Whether a process has ended; `None` for one of another machine, boot or container: nothing is known of it."""
    *place, pid, began = process.split(" ")
    if place != _place() or not pid.isdigit():
        return None
    return _began(int(pid)) != began


def _place() -> list[str]:
    return [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), str(Path("/proc/self/ns/pid").stat().st_ino)]


def _began(pid: int) -> str | None:
    """When a living process began (proc(5): of the fields after the name, 0 is the state, 19 the start)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
