"""Makes load by iSCSI: builds `initiator.c` (libiscsi) once and runs it inside a rig's namespace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from bench.rig import Rig, need
from livemount.core.run import run

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
