"""The process that prepares one disk, in a mount namespace of its own; `prepare` starts it and reads what it prints.

Crash contract: mounts, loop devices and scratch files live in this process's namespace and end with it. The disk may be
prepared in part then; preparing it again completes it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from livemount.core.errors import LivemountError, UnsupportedError
from livemount.guest.api import GuestReport, GuestRequest
from livemount.guest.disk import Disk, bootable, read_disk, read_further_disk
from livemount.guest.families import FAMILIES, Job
from livemount.guest.mounts import cover
from livemount.guest.tools import GuestTools

NAMES = {
    "LVM2_member": "LVM",
    "crypto_LUKS": "LUKS encryption",
    "linux_raid_member": "Linux software RAID",
}


def prepare_here(path: Path, request: GuestRequest, tools: GuestTools) -> GuestReport:
    """Prepare the disk, mounting in the present mount namespace."""
    disk = read_disk(path)
    firmware, missing_loader = bootable(disk)
    scratch = cover(path, tools.folder)
    others = tuple(read_further_disk(other) for other in request.other_disks)
    job = Job(disk, request, tools, scratch, firmware, missing_loader, others)
    for family in FAMILIES:
        report = family.prepare(job)
        if report is not None:
            return report
    raise UnsupportedError(f"no Linux root file system that can be prepared is on {path}: {_seen(disk)}")


def _seen(disk: Disk) -> str:
    if not disk.partitions:
        return "its partition table is empty"
    kinds = []
    for partition in disk.partitions:
        kind = partition.filesystem
        kinds.append(f"partition {partition.number} is {NAMES.get(kind, kind) if kind else 'of no known kind'}")
    return ", ".join(kinds)


def main() -> None:
    """Read the job from standard input, print the report or the error as JSON."""
    job = json.load(sys.stdin)
    try:
        request, tools = GuestRequest.model_validate(job["request"]), GuestTools(Path(job["tools"]))
        answer: dict[str, Any] = {"report": prepare_here(Path(job["disk"]), request, tools).model_dump(mode="json")}
    except LivemountError as error:
        answer = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
