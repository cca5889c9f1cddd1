"""What the LM host asks of the pseudo-disk driver. The driver's own files live below the spec's folders."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from livemount.core.machine import Frozen


class PseudoDiskSpec(Frozen):
    """One pseudo-disk: which source, and where its stores and its mount point are."""

    id: str
    """The mount's name."""
    source: str
    """A URI for `livemount.media.open_source`."""
    password_file: Path | None = None
    """The repository's password, for sources that have one."""
    directory: Path
    """Folder of this pseudo-disk, on local storage: private store and mount point. Made when missing."""
    recall_directory: Path
    """Folder in which the recall stores lie, one sub-folder a source identity, shared by mounts of one copy."""


class PseudoDiskStats(Frozen):
    """Counters of a pseudo-disk since it was made (kept over a worker's death where they follow from the maps)."""

    size: int
    private_bytes: int
    """Bytes in the private store (4 KiB granularity)."""
    recalled_bytes: int
    """Bytes of the source that were recalled for this mount."""
    recall_store_bytes: int
    """Bytes of the source that the recall store holds, whoever recalled them."""
    reads: int
    writes: int
    read_errors: int
    worker_restarts: int


class PseudoDiskState(Frozen):
    """A pseudo-disk that is attached."""

    spec: PseudoDiskSpec
    path: Path
    """The single file that is the disk: export it, loop-mount it."""
    stats: PseudoDiskStats


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
        """Detach, delete the private store, and delete the recall store when no other disk uses it."""

    def state(self, id: str) -> PseudoDiskState:
        """Raises `NotFoundError` when the id is not attached."""

    def states(self) -> list[PseudoDiskState]:
        """All attached disks."""

    def flush(self, id: str) -> None:
        """Make everything written so far durable."""
