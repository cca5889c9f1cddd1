"""Mounting a FUSE connection: open, mount, answer INIT, set the limits of its backing device.

INIT is answered here, once for the life of the mount; every worker then starts with a connection that is ready.

Writes end in the kernel's page cache, as those to a plain file do, and come to the worker later, at the latest with a
flush (`docs/durability.md`). So this process must never do I/O on a mount itself: it may wait for a worker that only
this process can replace. `sync` has a program do it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import select
import struct
import subprocess
from pathlib import Path

from livemount import _native
from livemount.core.errors import LivemountError, NoSpaceError, UnavailableError, UnsupportedError

log = logging.getLogger(__name__)

MAX_WRITE = 256 << 10
"""The largest write; `native/pseudo-disk/src/fuse.rs` has the same."""
_MAX_READ = 1 << 20
MAX_DIRTY = 512 << 20
"""Bytes of a disk that may be in the page cache and not yet in its private store: what a flush may have to wait for."""
_MAX_BACKGROUND = 512
"""Reads ahead and writes from the page cache under way. While that many writes are held for space, reads wait, too;
with many more, a read would wait long behind a flush."""
_SECOND = 1_000_000_000
_PAGES = _MAX_READ // 4096
_MINOR = 40

# Flags of INIT, from the kernel's include/uapi/linux/fuse.h.
_ASYNC_READ = 1 << 0
_BIG_WRITES = 1 << 5
_ASYNC_DIO = 1 << 15
_WRITEBACK_CACHE = 1 << 16
_MAX_PAGES = 1 << 22
_INIT_EXT = 1 << 30
_HAS_RESEND = 1 << 39
_WANTED = _ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _WRITEBACK_CACHE | _MAX_PAGES | _INIT_EXT | _HAS_RESEND

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_INIT_IN = struct.Struct("<IIIII")
_INIT_OUT = struct.Struct("<IiQ IIII HHIIHHI 28x")
_OP_INIT = 26


def device_number(mount_point: Path) -> str | None:
    """MAJOR:MINOR of what is mounted at a folder, read without touching the file system (its worker may be dead)."""
    wanted = str(mount_point)
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        words = line.split()
        if re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), words[4]) == wanted:
            return words[2]
    return None


def mount(mount_point: Path) -> int:
    """Mount a new connection and return its descriptor."""
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UnsupportedError("this machine has no /dev/fuse", hint="modprobe fuse") from error
    try:
        _native.mount_fuse(descriptor, mount_point)
        try:
            _answer_init(descriptor)
        except BaseException:
            _native.unmount(mount_point, force=True)
            raise
    except BaseException:
        os.close(descriptor)
        raise
    _set_limits(mount_point)
    return descriptor


def _answer_init(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(10_000):
        raise UnavailableError("the kernel sent no FUSE INIT within 10 s")
    message = os.read(descriptor, MAX_WRITE + 4096)
    _length, opcode, unique, *_ = _IN_HEADER.unpack_from(message)
    major, minor, readahead, low, high = _INIT_IN.unpack_from(message, _IN_HEADER.size)
    offered = low | high << 32
    if opcode != _OP_INIT or major != 7 or minor < 36 or not offered & _MAX_PAGES:
        raise UnsupportedError(f"the kernel speaks FUSE {major}.{minor}, 7.36 is needed")
    if not offered & _HAS_RESEND:
        log.warning("the kernel cannot resend FUSE requests (Linux 6.9 can): a killed worker stalls what it had taken")
    flags = offered & _WANTED
    answer = _INIT_OUT.pack(
        _INIT_OUT.size,
        0,
        unique,
        7,
        min(minor, _MINOR),
        min(readahead, _MAX_READ),
        flags & 0xFFFFFFFF,
        _MAX_BACKGROUND,
        _MAX_BACKGROUND * 3 // 4,  # of them before the device counts as congested
        MAX_WRITE,
        _SECOND,  # of times: the kernel sends the file's time with a flush, but not more often than it changes
        _PAGES,
        0,
        flags >> 32,
    )
    os.write(descriptor, answer)


def _set_limits(mount_point: Path) -> None:
    folder = Path("/sys/class/bdi") / str(device_number(mount_point))
    for name, value in (("read_ahead_kb", "1024"), ("strict_limit", "1"), ("max_bytes", str(MAX_DIRTY))):
        try:
            (folder / name).write_text(value)
        except OSError as error:
            log.info("cannot set %s of %s: %s", name, mount_point, error.strerror)


def clear(mount_point: Path) -> None:
    """Take away whatever is mounted at a folder, in use or not."""
    while device_number(mount_point) is not None:
        with contextlib.suppress(FileNotFoundError):
            _native.unmount(mount_point, force=True)


def sync(file: Path, timeout: float) -> None:
    """Make everything written to a file of a mount durable.

    Raises `NoSpaceError` when what was written before found none, `UnavailableError` when no worker serves the mount in
    time (seconds), `LivemountError` when it could not be written.
    """
    process = subprocess.Popen(
        ["sync", str(file)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"},
        text=True,
    )
    try:
        _, said = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        # It cannot be killed while it waits for the worker; it ends by itself.
        raise UnavailableError(f"{file} was not flushed within {timeout:.0f} s") from error
    if process.returncode == 0:
        return
    kinds = {errno.ENOSPC: NoSpaceError, errno.ENOTCONN: UnavailableError, errno.ECONNABORTED: UnavailableError}
    kind = next((kind for code, kind in kinds.items() if os.strerror(code) in said), LivemountError)
    raise kind(f"{file} cannot be flushed: {said.strip()}")
