"""Locks between processes and threads, and the steps that are taken under them.

A lock is an `flock` of a file. A caller that dies holds it no longer, but a program it had started may still be at
work: such a step inherits the locks, so that the next holder sees what it did.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from livemount.core.run import run

_held: ContextVar[tuple[int, ...]] = ContextVar("_held", default=())


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock named by `path`; the file is gone afterwards.

    Programs started otherwise than by `step` lose it on exec, not on fork: when the caller is killed while it starts
    one, the lock is held until that program has its own command line and can be found by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_file(descriptor, path):
            break
        # The holder before us has unlinked the file: what we locked is no longer what others open.
        os.close(descriptor)
    token = _held.set((*_held.get(), descriptor))
    try:
        yield
    finally:
        _held.reset(token)
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def step(*args: str, namespace: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`run`, with the locks of this thread held until the program has ended, whatever becomes of us."""
    return run(*args, namespace=namespace, check=check, pass_fds=_held.get())
