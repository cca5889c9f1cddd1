"""The recall store's folder: one for each source identity (and recall unit), gone with its last user.

All disks of a host share it. `data` is sparse and holds the chunks; `live` holds one state byte a chunk, mapped by all
workers and trusted until the machine restarts (a byte may reach the disk before its data); `durable` holds the states
that were true at some earlier sync, replaced as a whole; `users/ID` is one file for each disk. The folder comes and
goes under a lock.
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

HEADER = 4096
"""Bytes before the first state in `live`; `native/pseudo-disk/src/recall.rs` has the same."""

_MAGIC = b"LMRCLL01"
_FIELDS = struct.Struct("<8sQQ36s")
_PRESENT = 1
_ZERO = 2


@contextmanager
def _locked(recall_directory: Path) -> Iterator[None]:
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
        with _locked(self._directory):
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
        with _locked(self._directory):
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

    def leave(self, user: str) -> None:
        """Stop being a user; the last one takes the store with it."""
        with _locked(self._directory):
            users = self.folder / "users"
            (users / user).unlink(missing_ok=True)
            if users.is_dir() and not any(users.iterdir()):
                shutil.rmtree(self.folder)
