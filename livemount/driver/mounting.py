"""Mounting a FUSE connection: open, mount, answer INIT, set the limits of its backing device.

INIT is answered here, once for the life of the mount; every worker then starts with a connection that is ready.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import select
import struct
from pathlib import Path

from livemount import _native
from livemount.core.errors import UnavailableError, UnsupportedError

log = logging.getLogger(__name__)

MAX_WRITE = 1 << 20
_PAGES = MAX_WRITE // 4096
_MINOR = 40

# Flags of INIT, from the kernel's include/uapi/linux/fuse.h.
_ASYNC_READ = 1 << 0
_BIG_WRITES = 1 << 5
_ASYNC_DIO = 1 << 15
_MAX_PAGES = 1 << 22
_INIT_EXT = 1 << 30
_HAS_RESEND = 1 << 39
_WANTED = _ASYNC_READ | _BIG_WRITES | _ASYNC_DIO | _MAX_PAGES | _INIT_EXT | _HAS_RESEND

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
        min(readahead, MAX_WRITE),
        flags & 0xFFFFFFFF,
        64,  # background requests
        48,  # of them before the device counts as congested
        MAX_WRITE,
        1,
        _PAGES,
        0,
        flags >> 32,
    )
    os.write(descriptor, answer)


def _set_limits(mount_point: Path) -> None:
    folder = Path("/sys/class/bdi") / str(device_number(mount_point))
    for name, value in (("read_ahead_kb", "1024"), ("strict_limit", "0"), ("max_ratio", "100")):
        try:
            (folder / name).write_text(value)
        except OSError as error:
            log.info("cannot set %s of %s: %s", name, mount_point, error.strerror)


def clear(mount_point: Path) -> None:
    """Take away whatever is mounted at a folder, in use or not."""
    while device_number(mount_point) is not None:
        with contextlib.suppress(FileNotFoundError):
            _native.unmount(mount_point, force=True)
