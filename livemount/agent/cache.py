"""The agent's cache: chunks of sources as files, the least recently used deleted when the quota is reached.

A file holds the bytes of one chunk, then a digest of each 64 KiB of them: what was torn by a power cut, or has rotted,
is not served but deleted. Nothing else is stored, so a killed agent leaves nothing to repair. It is a cache of the
copies' data, in the clear, readable by the agent's user only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

from livemount.core.errors import ConflictError

log = logging.getLogger(__name__)

BLOCK = 64 << 10
DIGEST = 16
FILE_SYSTEM_BLOCK = 4096
_FOLDER = r"([0-9a-f]{32,128})-([1-9][0-9]{0,9})"

Key = tuple[str, int, int]
"""Identity of a source, size of its chunks, number of the chunk."""


class Cache:
    """Every method may be called from any thread."""

    def __init__(self, folder: Path, quota: int) -> None:
        """`quota` is in bytes of the file system. Raises `ConflictError` when another agent uses the folder."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise ConflictError(f"another agent uses {folder}", hint="each has a `state` of its own") from None
        self.folder = folder
        self.quota = quota
        self.used = 0
        """Bytes of the file system."""
        self._lock = threading.Lock()
        self._sizes: OrderedDict[Key, int] = OrderedDict()
        self._warned = False
        self._look()

    def get(self, key: Key, length: int, offset: int, count: int) -> bytes | None:
        """`count` bytes from `offset` of a chunk of `length` bytes; none when they are not here."""
        with self._lock:
            if key not in self._sizes:
                return None
            self._sizes.move_to_end(key)
        first, last = offset // BLOCK, -(-(offset + count) // BLOCK)
        begin, end = first * BLOCK, min(last * BLOCK, length)
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._forget(key)
            return None
        try:
            data = os.pread(descriptor, end - begin, begin)
            digests = os.pread(descriptor, (last - first) * DIGEST, length + first * DIGEST)
        except OSError as error:
            log.warning("cannot read %s: %s", self._path(key), error)
            data = digests = b""
        finally:
            os.close(descriptor)
        if len(data) != end - begin or digests != _digests(key, data, begin):
            log.warning("%s is damaged, and deleted", self._path(key))
            self._forget(key)
            return None
        return data if (offset, count) == (begin, len(data)) else data[offset - begin : offset - begin + count]

    def put(self, key: Key, data: bytes) -> None:
        """Keep a chunk, at the cost of others; nothing happens when there is no room for it at all."""
        size = _size_on_disk(len(data) + -(-len(data) // BLOCK) * DIGEST)
        if size > self.quota:
            return
        with self._lock:
            if key in self._sizes:
                return
            # Counted before it is written, and others deleted before: the quota is never exceeded.
            while self.used + size > self.quota and self._sizes:
                victim, freed = self._sizes.popitem(last=False)
                self.used -= freed
                self._unlink(victim)
            self.used += size
        path = self._path(key)
        fresh = path.with_name(f"{path.name}.{threading.get_ident()}.new")
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            with open(fresh, "xb", opener=_private) as file:
                file.write(data)
                file.write(_digests(key, data, 0))
            fresh.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                fresh.unlink()
            with self._lock:
                self.used -= size
            if not self._warned:
                log.warning("cannot keep chunks in %s: %s", self.folder, error)
                self._warned = True
            return
        with self._lock:
            self._warned = False
            self.used -= self._sizes.pop(key, 0)  # another thread may have been as quick
            self._sizes[key] = size

    def close(self) -> None:
        """Let another agent use the folder."""
        os.close(self._lock_file)

    def _look(self) -> None:
        """Know what an earlier agent has left, the oldest first."""
        found: list[tuple[int, Key, int]] = []
        for folder in self.folder.iterdir():
            named = re.fullmatch(_FOLDER, folder.name)
            if named is None or not folder.is_dir():
                continue
            for file in folder.iterdir():
                if not re.fullmatch(r"0|[1-9][0-9]{0,15}", file.name):
                    file.unlink()
                    continue
                status = file.stat()
                key = (named[1], int(named[2]), int(file.name))
                found.append((status.st_mtime_ns, key, _size_on_disk(status.st_size)))
            with contextlib.suppress(OSError):
                folder.rmdir()  # when nothing is in it
        for _, key, size in sorted(found):
            self._sizes[key] = size
            self.used += size
        while self.used > self.quota and self._sizes:
            victim, freed = self._sizes.popitem(last=False)
            self.used -= freed
            self._unlink(victim)

    def _forget(self, key: Key) -> None:
        with self._lock:
            if key in self._sizes:
                self.used -= self._sizes.pop(key)
                self._unlink(key)

    def _unlink(self, key: Key) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: Key) -> Path:
        identity, chunk, number = key
        return self.folder / f"{identity}-{chunk}" / str(number)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _size_on_disk(length: int) -> int:
    return -(-length // FILE_SYSTEM_BLOCK) * FILE_SYSTEM_BLOCK


def _digests(key: Key, data: bytes, begin: int) -> bytes:
    """A digest of each block, which also says whose it is and where."""
    identity, chunk, number = key
    view = memoryview(data)
    parts = []
    for at in range(0, len(data), BLOCK):
        block = hashlib.sha256(f"{identity} {number * chunk + begin + at}".encode())
        block.update(view[at : at + BLOCK])
        parts.append(block.digest()[:DIGEST])
    return b"".join(parts)
