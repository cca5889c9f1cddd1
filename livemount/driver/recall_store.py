"""The recall store's folder: one for each source identity (and recall unit).

All disks of a host share it. `data` is sparse and holds the chunks; `live` holds one state byte a chunk, mapped by all
workers and trusted until the machine restarts (a byte may reach the disk before its data); `durable` holds the states
that were true at some earlier sync, replaced as a whole; `users/ID` is one file for each disk. The folder comes and
goes under a lock, and goes at once: it is renamed, then deleted. `livemount.driver.recall_stores` says when.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from livemount.core.errors import CorruptError
from livemount.core.files import replace_file
from livemount.driver.layout import Facts
from livemount.driver.ledger import Ledger

HEADER = 4096
"""Bytes before the first state in `live`; `native/pseudo-disk/src/recall.rs` has the same."""

_MAGIC = b"LMRCLL01"
_FIELDS = struct.Struct("<8sQQ36s")
_PRESENT = 1
_ZERO = 2


_DISCARDED = ".discarded-"
"""What the name of a store that is being deleted begins with."""


@contextmanager
def locked(recall_directory: Path) -> Iterator[None]:
    """Hold the lock under which stores are joined, left and discarded; makes the folder."""
    recall_directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(recall_directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def chunk_size_for(source_chunk_size: int) -> int:
    """The recall unit: as much as the source decodes anyway, in 64 KiB steps, at most 1 MiB."""
    return max(1, min(16, source_chunk_size // 65536)) * 65536


class RecallStore:
    """The recall store of one source."""

    def __init__(self, recall_directory: Path, facts: Facts) -> None:
        """The identity comes from a source and becomes a folder's name: anything but hex digits is refused."""
        if not re.fullmatch(r"[0-9a-f]{8,128}", facts.identity):
            raise CorruptError(f"the source's identity {facts.identity!r} is not made of hex digits")
        self._directory = recall_directory
        self._facts = facts
        self.folder = recall_directory / f"{facts.identity}-{facts.chunk_size // 1024}k"

    def join(self, user: str, holes: Iterable[tuple[int, int]]) -> None:
        """Become a user; make the store when it is not there. `holes` are offsets and lengths of zeros."""
        with locked(self._directory):
            Ledger(self._directory).make()
            (self.folder / "users").mkdir(parents=True, exist_ok=True)
            (self.folder / "users" / user).touch()
            header = _FIELDS.pack(_MAGIC, self._facts.size, self._facts.chunk_size, _boot_id())
            try:
                with (self.folder / "live").open("rb") as file:
                    if file.read(len(header)) == header:
                        return
            except FileNotFoundError:
                pass
            self._make(header, holes)

    def _make(self, header: bytes, holes: Iterable[tuple[int, int]]) -> None:
        states = self._durable_states()
        data = self.folder / "data"
        if not data.exists() or data.stat().st_size != self._facts.size:
            # What is noted as durable would be zeros in a new file.
            (self.folder / "durable").unlink(missing_ok=True)
            states = None
        if states is None:
            states = bytearray(-(-self._facts.size // self._facts.chunk_size))
            for offset, length in holes:
                first = -(-offset // self._facts.chunk_size)
                end = offset + length
                after = len(states) if end == self._facts.size else end // self._facts.chunk_size
                if first < after:
                    states[first:after] = bytes([_ZERO]) * (after - first)
        with data.open("ab") as file:
            file.truncate(self._facts.size)
        fresh = self.folder / "live.new"
        with fresh.open("wb") as file:
            # Allocated at once: a mapped byte without a block would be a SIGBUS on a full file system.
            os.posix_fallocate(file.fileno(), 0, HEADER + len(states))
            file.write(header.ljust(HEADER, b"\0"))
            file.write(states)
        fresh.replace(self.folder / "live")

    def _durable_states(self) -> bytearray | None:
        try:
            content = (self.folder / "durable").read_bytes()
        except FileNotFoundError:
            return None
        magic, size, chunk_size, _boot = _FIELDS.unpack_from(content.ljust(_FIELDS.size, b"\0"))
        states = content[_FIELDS.size + 4 :]
        known = (magic, size, chunk_size) == (_MAGIC, self._facts.size, self._facts.chunk_size)
        sum_right = content[_FIELDS.size : _FIELDS.size + 4] == struct.pack("<I", zlib.crc32(states))
        # A store that cannot be trusted is only another recall.
        return bytearray(states) if known and sum_right else None

    def checkpoint(self) -> None:
        """Make what was recalled so far survive a restart of the machine."""
        with locked(self._directory):
            content = (self.folder / "live").read_bytes()
            header, states = content[: _FIELDS.size], content[HEADER:]
            with (self.folder / "data").open("rb") as file:
                try:
                    os.fdatasync(file.fileno())
                except OSError:
                    self._forget()
                    raise
            replace_file(self.folder / "durable", header + struct.pack("<I", zlib.crc32(states)) + states)

    def _forget(self) -> None:
        """Recall again what is not durable: the kernel may have dropped what it could not write, and says so once."""
        durable = self._durable_states() or b""
        with (self.folder / "live").open("r+b") as file:
            states = file.read()[HEADER:]
            for chunk, state in enumerate(states):
                if state == _PRESENT and durable[chunk : chunk + 1] != bytes([_PRESENT]):
                    os.pwrite(file.fileno(), b"\0", HEADER + chunk)

    def stored_bytes(self) -> int:
        """Bytes of the source that the store holds; known zeros do not count."""
        try:
            with (self.folder / "live").open("rb") as file:
                file.seek(HEADER)
                states = file.read()
        except FileNotFoundError:
            return 0
        return min(states.count(_PRESENT) * self._facts.chunk_size, self._facts.size)

    def leave(self, user: str, *, keep: bool = False) -> None:
        """Stop being a user; the last one takes the store with it, or has it kept for the next."""
        with locked(self._directory):
            users = self.folder / "users"
            (users / user).unlink(missing_ok=True)
            if not users.is_dir() or is_used(self.folder):
                return
            if keep:
                os.utime(users)
            else:
                discard(self.folder)


def is_used(store: Path) -> bool:
    """Whether a disk uses a store. As long as the caller holds the lock, that stays so."""
    users = store / "users"
    return users.is_dir() and any(users.iterdir())


def left_at(store: Path) -> int:
    """When the last user left an unused store, in ns since the epoch; 0 for a store that never had one."""
    try:
        return (store / "users").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def discard(store: Path) -> None:
    """Delete a store that nobody uses. The caller holds the lock."""
    # Half a store must never be taken for one: what `durable` tells of would be zeros in a new `data`.
    going = store.with_name(f"{_DISCARDED}{store.name}")
    if going.exists():
        shutil.rmtree(going)
    store.rename(going)
    shutil.rmtree(going)


def remove_discarded(recall_directory: Path) -> None:
    """Delete what somebody was killed while deleting. The caller holds the lock."""
    for going in recall_directory.glob(f"{_DISCARDED}*"):
        shutil.rmtree(going)
