"""The files of one pseudo-disk, and its counters.

`FOLDER/disk/disk` is the disk (mount point and its one file); everything else of it lies in `FOLDER/private`.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from livemount.core.files import replace_file

COUNTERS_SIZE = 4096


class Counter(IntEnum):
    """Places in the counters file (u64 each); `native/pseudo-disk/src/counters.rs` has the same."""

    READS = 0
    WRITES = 1
    READ_ERRORS = 2
    RECALLED_BYTES = 3
    PRIVATE_BYTES = 4
    WRITE_ERRORS = 5
    WORKER_RESTARTS = 6
    PREFETCHED_BYTES = 7
    READ_BYTES = 8
    WRITTEN_BYTES = 9
    ZERO_HITS = 10
    PRIVATE_HITS = 11
    RECALL_HITS = 12
    MISSES = 13


class LatencyPlace(IntEnum):
    """Places in the counters file where a latency begins: its sum in microseconds, then `LATENCY_BUCKETS` counts."""

    READ = 16
    WRITE = 48


LATENCY_BUCKETS = 30
"""Bucket `i` counts what took less than 2^i microseconds and not less than the bucket before; the last, the rest."""


@dataclass(frozen=True)
class Facts:
    """What a disk must know of its source, so that it can run while the source is away. Sizes in bytes."""

    identity: str
    size: int
    chunk_size: int


@dataclass(frozen=True)
class DiskFiles:
    """The paths below a pseudo-disk's folder."""

    folder: Path

    @property
    def mount_point(self) -> Path:
        """Where the disk's file system is mounted."""
        return self.folder / "disk"

    @property
    def disk(self) -> Path:
        """The file that is the disk."""
        return self.mount_point / "disk"

    @property
    def private(self) -> Path:
        """The private store, and the worker's own files."""
        return self.folder / "private"

    @property
    def control(self) -> Path:
        """The worker's socket."""
        return self.private / "control.sock"

    @property
    def lock(self) -> Path:
        """Held by the worker that has the private store open."""
        return self.private / "lock"

    @property
    def log(self) -> Path:
        """What the workers of this disk had to say."""
        return self.private / "worker.log"

    @property
    def counters(self) -> Path:
        """Mapped by the worker, read by the supervisor."""
        return self.private / "counters"

    def facts(self) -> Facts | None:
        """The facts of the source this private store belongs to; none when there is no store yet."""
        try:
            return Facts(**json.loads((self.private / "source.json").read_text()))
        except FileNotFoundError:
            return None

    def write_facts(self, facts: Facts) -> None:
        """Bind the private store to its source."""
        replace_file(self.private / "source.json", json.dumps(asdict(facts)).encode())

    def read_words(self) -> tuple[int, ...]:
        """The counters file as it is now; `Counter` and `LatencyPlace` say what is where."""
        try:
            content = self.counters.read_bytes()[:COUNTERS_SIZE]
        except FileNotFoundError:
            content = b""
        return struct.unpack(f"<{COUNTERS_SIZE // 8}Q", content.ljust(COUNTERS_SIZE, b"\0"))

    def read_counters(self) -> dict[Counter, int]:
        """The counters as they are now."""
        words = self.read_words()
        return {counter: words[counter] for counter in Counter}

    def prepare_counters(self) -> None:
        """Have a counters file; one that a crash of the machine or a full file system left half made starts again."""
        if not self.counters.exists() or self.counters.stat().st_size != COUNTERS_SIZE:
            self.counters.write_bytes(bytes(COUNTERS_SIZE))

    def count_restart(self) -> None:
        """Note that a worker had to be replaced. Only the supervisor does, so nothing is lost between."""
        count = self.read_counters()[Counter.WORKER_RESTARTS] + 1
        with self.counters.open("r+b") as file:
            file.seek(8 * Counter.WORKER_RESTARTS)
            file.write(struct.pack("<Q", count))
