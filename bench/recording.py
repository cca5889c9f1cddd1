"""Records the requests of a guest's boot: strace shows what tgtd reads and writes, one system call a SCSI command."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.rig import Rig, need, wait_for

_CALL = re.compile(r'(pread64|pwrite64)\(\d+, ""(?:\.\.\.)?, (\d+), (\d+)\)\s+= (-?\d+)')


@dataclass(frozen=True)
class Request:
    """One request to a disk, in bytes."""

    write: bool
    offset: int
    length: int


def parse(text: str) -> list[Request]:
    """The requests in strace's output (`-f -s 0`), in the order in which they were begun; failed ones are left out."""
    calls: list[str] = []
    begun: dict[str, int] = {}
    for line in text.splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.strip()
        if rest.startswith("<... ") and thread in begun:
            calls[begun.pop(thread)] += rest.partition("resumed>")[2]
            continue
        if rest.endswith("<unfinished ...>"):
            begun[thread] = len(calls)
            rest = rest.removesuffix("<unfinished ...>").rstrip()
        calls.append(rest)
    # A thread's own text may have been cut anywhere: between the parts is a space, or none.
    found = (_CALL.match(re.sub(r",\s*", ", ", call)) for call in calls)
    return [Request(call[1] == "pwrite64", int(call[3]), int(call[2])) for call in found if call and call[2] == call[4]]


@contextlib.contextmanager
def recording(rig: Rig, target: subprocess.Popen[bytes], to: Path) -> Iterator[None]:
    """Record what a tgtd does into a file for `parse`."""
    need("strace")
    words = ["strace", "-f", "-qq", "-s", "0", "-e", "trace=pread64,pwrite64", "-o", str(to), "-p", str(target.pid)]
    tracer = rig.start("strace", *words)
    status = Path(f"/proc/{target.pid}/status")
    wait_for(lambda: f"TracerPid:\t{tracer.pid}\n" in status.read_text(), "tgtd is traced")
    try:
        yield
    finally:
        rig.stop(tracer, signal.SIGINT)
