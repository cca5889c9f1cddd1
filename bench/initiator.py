"""Makes load by iSCSI: builds `initiator.c` (libiscsi) once and runs it inside a rig's namespace."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.recording import Request
from bench.rig import Rig, need
from livemount.core.run import CommandError, in_namespace, run

NAME = "iqn.2026-01.internal.livemount:bench"


@dataclass(frozen=True)
class Load:
    """A load on a disk. `block` in bytes; `flush_every` writes are followed by a flush, 0 never."""

    name: str
    kind: str
    block: int
    depth: int
    flush_every: int = 0


@dataclass(frozen=True)
class Measured:
    """What came of a load."""

    operations: int
    flushes: int
    seconds: float
    p50: float
    p99: float

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


class Initiator:
    """The built program."""

    def __init__(self, rig: Rig) -> None:
        """Build it. Raises `UnavailableError` without a compiler, `CommandError` without libiscsi-dev."""
        need("cc")
        self._rig = rig
        self._program = rig.folder / "initiator"
        source = Path(__file__).with_name("initiator.c")
        run("cc", "-O2", "-Wall", "-Wextra", "-o", self._program, source, "-liscsi")

    def run(self, url: str, load: Load, seconds: float) -> Measured:
        """Log in, make the load, log out. Raises `CommandError` at the first failed command."""
        words = [url, NAME, load.kind, str(load.block), str(load.depth), str(seconds), str(load.flush_every)]
        done = run(self._program, *words, namespace=self._rig.namespace, timeout=seconds + 120)
        return Measured(**json.loads(done.stdout))

    def replay(self, urls: Sequence[str], recording: Sequence[Request], seconds: float) -> float:
        """Send a recording's requests to each URL, to all at once; the seconds until the last one has ended.

        One request after the other in each session. Raises `CommandError` for a failed command, or one that has not
        ended after `seconds`.
        """
        file = self._rig.folder / "recording"
        file.write_text("".join(f"{'w' if r.write else 'r'} {r.offset} {r.length}\n" for r in recording))
        words = ["replay", str(max(r.length for r in recording)), "1", str(seconds), "0", str(file)]
        began = time.perf_counter()
        running = []
        try:
            for number, url in enumerate(urls):
                command = [*in_namespace(self._rig.namespace), str(self._program), url, f"{NAME}{number}", *words]
                running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
            for process in running:
                out, err = process.communicate()
                if process.returncode != 0:
                    raise CommandError([str(self._program), *words], process.returncode, out, err)
        finally:
            for process in running:
                process.kill()
                process.wait()
        return time.perf_counter() - began
