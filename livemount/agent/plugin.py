"""The plug-in that nbdkit runs (`nbdkit python plugin.py config=FILE`): its callbacks, each a line over `Exports`.

Read-only: nbdkit offers no writes where a plug-in has none.
"""

from __future__ import annotations

import errno
import logging
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbdkit

from livemount.agent.config import load
from livemount.agent.exports import Export, Exports
from livemount.core.errors import CorruptError, DeniedError, LivemountError, NotFoundError, UsageError

API_VERSION = 2
ERRNO = {CorruptError: errno.EINVAL, UsageError: errno.EINVAL, DeniedError: errno.EPERM, NotFoundError: errno.ESHUTDOWN}
"""What the protocol says of an error; of any other, that the input or output failed."""

_file = ""
_exports: Exports


def thread_model() -> int:
    """Requests come from many threads at once; sources let go of Python's lock while they read."""
    return int(nbdkit.THREAD_MODEL_PARALLEL)


def config(key: str, value: str) -> None:
    """The one parameter."""
    global _file
    if key != "config":
        raise RuntimeError(f"unknown parameter {key}")
    _file = value


def after_fork() -> None:
    """nbdkit is about to serve."""
    global _exports
    # Asked to end, nbdkit would wait until all clients have left, and they never do. It only reads: it may just end.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    _exports = Exports(load(Path(_file)))


def list_exports(_readonly: bool, _is_tls: bool) -> list[str]:
    """What can be opened by name."""
    return _exports.names()


def open(_readonly: bool) -> Export:
    """A connection to an export."""
    return _exports.open(nbdkit.export_name())


def close(export: Export) -> None:
    """Its end."""
    export.close()


def export_description(export: Export) -> str:
    """What `livemount.media.agents` reads."""
    return export.description


def get_size(export: Export) -> int:
    """Bytes."""
    return export.size


def can_multi_conn(_export: Export) -> bool:
    """Nothing is written, so all connections see the same."""
    return True


def can_cache(_export: Export) -> int:
    """What a client wants read ahead is read: it is in the cache then."""
    return int(nbdkit.CACHE_EMULATE)


def pread(export: Export, buffer: Any, offset: int, _flags: int) -> None:
    """Fill the buffer."""
    try:
        buffer[:] = export.read(offset, len(buffer))
    except LivemountError as error:
        raise _failure(error) from None


def extents(export: Export, count: int, offset: int, _flags: int) -> Iterator[tuple[int, int, int]]:
    """Offset, length and kind of each."""
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    try:
        found = list(export.extents(offset, count))
    except LivemountError as error:
        raise _failure(error) from None
    return iter([(extent.offset, extent.length, hole if extent.hole else 0) for extent in found])


def _failure(error: LivemountError) -> OSError:
    number = ERRNO.get(type(error), errno.EIO)
    nbdkit.set_error(number)
    logging.getLogger("livemount.agent").warning("a read failed: %s", error)
    return OSError(number, str(error))
