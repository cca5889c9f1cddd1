"""Types of the Rust extension (native/)."""

import builtins
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

class PseudoDisk:
    """A disk over its private store and a recall store; `read` to `flush` do what requests of the kernel do.

    I/O errors are `OSError`; opening damaged stores raises `CorruptError`.
    """

    def __new__(
        cls,
        private: PathLike[str],
        recall_store: PathLike[str],
        size: int,
        chunk_size: int,
        recall: Callable[[int, int, bool], bytes],
        recall_threads: int,
        hold: float = 0.0,
    ) -> PseudoDisk:
        """Open the stores, making the private one when it is not there.

        `recall(offset, length, background)` is called from up to `recall_threads` threads, for whole chunks. It raises
        `OSError` on failure; the errno `ETIMEDOUT` says that the source does not answer, any other that it answered
        without these bytes. In the background nobody waits for the bytes: it must not hold on.
        Writes that find no space for the private store wait for it up to `hold` seconds.
        """

    def read(self, offset: int, length: int) -> bytes: ...
    def write(self, offset: int, data: bytes) -> None: ...
    def zero(self, offset: int, length: int) -> None: ...
    def flush(self) -> None:
        """Make every write that returned before the call durable."""

    def prefetch(self, chunks: Sequence[int]) -> None:
        """Recall these chunks, by number, in the background and in this order. A later call replaces what is left."""

    def first_reads(self) -> list[int]:
        """The chunks read since the disk was opened (bounded in time and number), in the order of first reads."""

    def serve(self, descriptor: int, threads: int) -> None:
        """Answer requests of a mounted /dev/fuse descriptor from `threads` threads, starting with unanswered ones."""

    def wait(self) -> None:
        """Return when the mount is gone."""

    def close(self) -> None:
        """Flush; end recalls."""

def mount_fuse(descriptor: int, target: Path) -> None:
    """Mount the FUSE connection of an open /dev/fuse on a folder."""

def unmount(target: Path, force: bool) -> None:
    """Unmount; with `force` also what is in use, whose users get errors from then on."""

def set_io_flusher() -> None:
    """Keep this process's memory allocations from waiting for I/O it serves itself. Needs CAP_SYS_RESOURCE."""

class Snapshot:
    @property
    def id(self) -> str: ...
    @property
    def time(self) -> int: ...
    @property
    def hostname(self) -> str: ...
    @property
    def tags(self) -> list[str]: ...
    @property
    def paths(self) -> list[str]: ...
    @property
    def description(self) -> str | None: ...
    @property
    def added(self) -> int | None: ...

class DiskOrder(Protocol):
    """A disk to back up, read from `path`, else by `read`. Ranges are (offset, length).

    With a `base` (snapshot, path in it) only what is in `changed` and in `data` is read. `data` is not used with a
    path: the file tells its holes.
    """

    @property
    def file(self) -> str: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def read(self) -> Callable[[int, int], bytes] | None: ...
    @property
    def size(self) -> int: ...
    @property
    def data(self) -> Sequence[tuple[int, int]]: ...
    @property
    def base(self) -> tuple[str, Path] | None: ...
    @property
    def changed(self) -> Sequence[tuple[int, int]]: ...

class BackupResult:
    @property
    def id(self) -> str: ...
    @property
    def time(self) -> int: ...
    @property
    def stored(self) -> list[int]: ...
    @property
    def read(self) -> int: ...
    @property
    def added(self) -> int: ...

class Pruned:
    @property
    def marked(self) -> int: ...
    @property
    def deleted(self) -> int: ...
    @property
    def repacked(self) -> int: ...

class Repository:
    @staticmethod
    def init(path: Path, password: str) -> Repository: ...
    @staticmethod
    def open(path: Path, password: str) -> Repository: ...
    def snapshots(self) -> tuple[list[Snapshot], list[str]]: ...
    def backup(
        self,
        name: str,
        description: bytes,
        disks: Sequence[DiskOrder],
        tags: Sequence[str],
        journal: Path | None,
        checkpoint: int,
        progress: Callable[[int, int], object],
    ) -> BackupResult: ...
    def verify(self, snapshot: str, file: Path, disk: DiskOrder, progress: Callable[[int, int], object]) -> None: ...
    def disk(self, snapshot: str, file: Path) -> Disk: ...
    def backup_files(
        self,
        root: Path,
        name: str,
        tags: Sequence[str],
        emptied: Sequence[Path],
        since: str | None,
        describe: Callable[[int], bytes],
        progress: Callable[[int, int], object],
    ) -> BackupResult: ...
    def file_tree(self, snapshot: str, path: Path) -> FileTree: ...
    def read_file(self, snapshot: str, file: Path, limit: int) -> bytes: ...
    def check(self, read_percent: float) -> list[tuple[bool, str]]: ...
    def retention(self, ids: list[str], rules: str) -> list[tuple[str, bool, list[str]]]: ...
    def forget(self, ids: list[str]) -> None: ...
    def prune(self, plan_only: bool, max_unused: int, keep: int) -> Pruned: ...

class Disk:
    @property
    def size(self) -> int: ...
    @property
    def identity(self) -> str: ...
    @property
    def chunk_size(self) -> int: ...
    @property
    def stored(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]: ...
    def digest(self) -> str: ...
    def close(self) -> None: ...

class FileTree:
    """A folder of a snapshot; of no use once it has become a disk."""

    @property
    def id(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    def read(self, path: builtins.bytes, limit: int) -> builtins.bytes | None: ...
    def names(self, path: builtins.bytes) -> list[builtins.bytes]: ...
    def write(
        self,
        target: Path,
        before: int,
        after: int,
        uuid: builtins.bytes,
        label: builtins.bytes,
        free: int,
        files: Sequence[tuple[builtins.bytes, builtins.bytes]],
        folders: Sequence[tuple[builtins.bytes, int]],
    ) -> int: ...
    def disk(self, written: Path) -> FilesDisk: ...

class FilesDisk:
    @property
    def size(self) -> int: ...
    @property
    def identity(self) -> str: ...
    @property
    def chunk_size(self) -> int: ...
    def read(self, offset: int, length: int) -> bytes: ...
    def extents(self, offset: int, length: int) -> list[tuple[int, int, bool]]: ...
    def close(self) -> None: ...
