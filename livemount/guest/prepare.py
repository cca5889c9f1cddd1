"""Guest preparation: makes the system on a disk able to boot from iSCSI. No code of the guest runs here.

Calls for different disks may run at once; a disk must be prepared by one call at a time, and written by nobody else.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path

from livemount.core import errors
from livemount.core.errors import LivemountError, NotFoundError, UsageError
from livemount.core.run import run
from livemount.guest.api import GuestReport, GuestRequest
from livemount.guest.tools import GuestTools

UP_URL = r"http://[A-Za-z0-9.\-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/\-]*)?"


def prepare(disk: Path, request: GuestRequest, tools: GuestTools) -> GuestReport:
    """Prepare the system on `disk`, a regular file that is a whole disk (of any file system, FUSE included).

    Preparing again changes nothing more. Raises `NotFoundError`, `UsageError` for an `up_url` that is not a plain HTTP
    address, and `UnsupportedError` for a disk that cannot be prepared; nothing stays mounted then.
    """
    started = time.monotonic()
    if not disk.is_file():
        raise NotFoundError(f"the disk {disk} does not exist, or is not a regular file")
    if request.up_url is not None and re.fullmatch(UP_URL, request.up_url) is None:
        raise UsageError(f"{request.up_url!r} is not a plain HTTP address a guest could ask")
    tools.check()
    job = {
        "disk": str(disk.resolve()),
        "request": request.model_dump(mode="json"),
        "tools": str(tools.folder.resolve()),
    }
    # The worker ends with us, and its mounts, loop devices and scratch files with its namespace.
    done = run(
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--propagation", "private", "--"),
        *(sys.executable, "-m", "livemount.guest.worker"),
        input=json.dumps(job),
        # `-m` looks in the working directory first: the worker must be of this very package.
        cwd=Path(__file__).parents[2],
        timeout=600,
    )
    answer = json.loads(done.stdout)
    if "error" in answer:
        kind = getattr(errors, answer["error"], LivemountError)
        raise kind(answer["message"], hint=answer["hint"])
    report = GuestReport.model_validate(answer["report"])
    return report.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
