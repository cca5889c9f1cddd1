"""What the processes of a rig cost: memory (PSS) and processor time."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from bench.rig import Rig

TICKS = os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> float:
    """MiB of a process, shared pages divided among those that share them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process and of its children that have ended."""
    # proc(5): after the program's name come the state (field 3) and, as fields 14 to 17, the four times.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) / TICKS


def processes(rig: Rig) -> set[int]:
    """The rig's own children, and whoever has a file of the rig open (the workers)."""
    found = {process.pid for process in rig.processes}
    inside = f"{rig.folder}/"
    for folder in Path("/proc").glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if any(os.path.realpath(link).startswith(inside) for link in (folder / "fd").iterdir()):
                found.add(int(folder.name))
    return found


def memory(rig: Rig) -> float:
    """MiB of all of them."""
    return sum(pss(pid) for pid in processes(rig))


def cpu(rig: Rig) -> float:
    """Processor seconds of all of them, as far as they live."""
    return sum(cpu_seconds(pid) for pid in processes(rig))
