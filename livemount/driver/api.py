"""What the LM host asks of the pseudo-disk driver. The driver's own files live below the spec's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import Field

from livemount.core.machine import HOLD_SECONDS, NAME_PATTERN, Frozen, HoldSeconds

DISK_ID = NAME_PATTERN.removesuffix("$") + r"(\.[1-9]?[0-9])?$"
"""A mount's name; of a machine's further disks with their numbers."""


class PseudoDiskSpec(Frozen):
    """One pseudo-disk: which source, and where its stores and its mount point are."""

    id: str
    """The mount's name, of a machine's further disks with `.NUMBER` after it."""
    source: str
    """A URI for `livemount.media.open_source`."""
    password_file: Path | None = None
    """The repository's password, for sources that have one."""
    directory: Path
    """Folder of this pseudo-disk, on local storage: private store and mount point. Made when missing."""
    recall_directory: Path
    """Folder in which the recall stores lie, one sub-folder a source identity, shared by mounts of one copy."""
    profile: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the boot profile, for all copies of one machine: what earlier mounts read first is recalled ahead."""
    hold_seconds: HoldSeconds = HOLD_SECONDS


class Latency(Frozen):
    """How long requests took. Bucket `i` counts those of less than 2^i microseconds that are in no bucket before."""

    seconds: float = 0
    """Sum over all requests."""
    buckets: tuple[int, ...] = ()

    def quantile(self, part: float) -> float:
        """Seconds that this part of the requests (0 to 1) did not exceed, to the next power of two; 0 without any."""
        rank, seen = part * sum(self.buckets), 0
        for number, count in enumerate(self.buckets):
            seen += count
            if count and seen >= rank:
                return float(2**number / 1e6)
        return 0.0


class PseudoDiskStats(Frozen):
    """Counters of a pseudo-disk since it was made (kept over a worker's death where they follow from the maps)."""

    size: int
    private_bytes: int
    """Bytes in the private store (4 KiB granularity)."""
    recalled_bytes: int
    """Bytes of the source that were recalled for this mount, in the background or not."""
    recall_store_bytes: int
    """Bytes of the source that the recall store holds, whoever recalled them."""
    reads: int
    writes: int
    read_errors: int
    worker_restarts: int
    prefetched_bytes: int = 0
    """Of the recalled bytes, those that nobody waited for: ahead of sequential reads, or of the boot profile."""
    read_bytes: int = 0
    written_bytes: int = 0
    write_errors: int = 0
    zero_hits: int = 0
    """Reads that were answered from known zeros alone."""
    private_hits: int = 0
    """Reads that were answered from the private store (and zeros)."""
    recall_hits: int = 0
    """Reads that were answered at once, at least in part from the recall store."""
    misses: int = 0
    """Reads that waited for a recall."""
    read_latency: Latency = Latency()
    write_latency: Latency = Latency()


class PseudoDiskState(Frozen):
    """A pseudo-disk that is attached."""

    spec: PseudoDiskSpec
    path: Path
    """The single file that is the disk: export it, loop-mount it."""
    stats: PseudoDiskStats


class RecallStats(Frozen):
    """The recall stores of a host, as they were when they were last looked at."""

    quota_bytes: int
    used_bytes: int
    """What they take of the file system."""
    evictions: int
    """Stores that no mount used and that were deleted for want of room."""
    not_kept_chunks: int
    """Chunks that were recalled and handed over, but not kept for want of room."""


class PseudoDiskDriver(Protocol):
    """Client of the driver on this host. Every call is idempotent."""

    def attach(self, spec: PseudoDiskSpec) -> PseudoDiskState:
        """Bring the disk up (again); returns when its file can be read and written.

        Raises `NotFoundError` for a source that is not there, `DeniedError` for a wrong key, `NoSpaceError`,
        `ConflictError` when the id is attached with another spec.
        """

    def detach(self, id: str) -> None:
        """Flush and take the disk down; its stores stay. Nothing happens when it is not attached."""

    def destroy(self, id: str) -> None:
        """Detach, delete the private store; the recall store goes with its last disk, where it is not to be kept."""

    def state(self, id: str) -> PseudoDiskState:
        """Raises `NotFoundError` when the id is not attached."""

    def states(self) -> list[PseudoDiskState]:
        """All attached disks."""

    def flush(self, id: str) -> None:
        """Make everything written so far durable."""

    def pin(self, source: str, holder: str, reason: str, password_file: Path | None) -> None:
        """Keep what a source names from being removed by retention; raises what `media.registry.pin_source` raises."""

    def unpin(self, source: str, holder: str, password_file: Path | None) -> None:
        """Undo it: at once, or when the repository can be reached again."""

    def recall_stats(self) -> RecallStats:
        """The recall stores in the host's own folder."""
