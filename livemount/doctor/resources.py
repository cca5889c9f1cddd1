"""Whether there is room: disk space for stores and caches, memory for virtual machines."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.settings import Settings
from livemount.doctor.api import check

GIB = 1 << 30
HOME_GIB = 10
"""Private and recall stores of a few mounts."""
CACHE_GIB = 5
"""Build output of the native extension, the Pulumi CLI, the test guest."""
MEMORY_GIB = 2
"""One virtual machine of 1 GiB, and the services."""


@check("disk space for stores")
def home_space() -> str:
    """Below LIVEMOUNT_HOME."""
    return _space(Settings().home, HOME_GIB, "LIVEMOUNT_HOME")


@check("disk space for the cache")
def cache_space() -> str:
    """Below LIVEMOUNT_CACHE."""
    return _space(Settings().cache, CACHE_GIB, "LIVEMOUNT_CACHE")


def _space(folder: Path, wanted: int, variable: str) -> str:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / GIB
    if free < wanted:
        raise LivemountError(
            f"{free:.1f} GiB free for {folder}, wanted are {wanted}",
            hint=f"free some, or set {variable} to another folder",
        )
    return f"{free:.0f} GiB free for {folder}"


@check("memory")
def memory() -> str:
    """What could be had without swapping (proc(5))."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    available = int(found[1]) * 1024 / GIB if found else 0.0
    if available < MEMORY_GIB:
        raise LivemountError(
            f"{available:.1f} GiB available, wanted are {MEMORY_GIB}", hint="end what uses memory, or add some"
        )
    return f"{available:.1f} GiB available"
