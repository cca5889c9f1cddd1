"""Opens an image's system as a folder. The image, any source, is never written to, and nothing of it is run.

The file systems are mounted in namespaces of a process of their own, and reached through a descriptor: nobody else
sees them, and they end with it. It ends with this process, also when that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from livemount.core.errors import DeniedError, LivemountError, UnavailableError
from livemount.driver.layout import DiskFiles
from livemount.driver.protocol import MESSAGE_LIMIT, encode, result_of
from livemount.inside.worker import DISK, ROOT
from livemount.media.child import Child
from livemount.media.registry import named

OPEN_SECONDS = 600.0
END_SECONDS = 60.0
FAILED_RECALL = re.compile(r"recall of .* failed: (.*)")


@dataclass(frozen=True)
class Inside:
    """An image that is open."""

    folder: Path
    """The root of its system, read-only; valid in this process only. Parts of it may be file systems of their own."""
    system: str
    """What the system calls itself."""
    notes: tuple[str, ...]
    """What whoever reads its files should know."""


@contextmanager
def opened(uri: str, password_file: Path | None) -> Iterator[Inside]:
    """Open the system on a source, until the block ends. Errors of the block name files as the system does.

    Raises `DeniedError` when this process may not mount, `UnsupportedError` when there is no Linux with an ext2, ext3
    or ext4 root, and what opening the source raises.
    """
    if os.geteuid() != 0:
        raise DeniedError("only root can look into an image", hint="mount it, and back up that folder")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            worker = _start(theirs)
        try:
            job = {
                "source": named(uri),
                "password_file": str(password_file.absolute()) if password_file else None,
                "needed": [unquote(path) for path in re.findall(r"/[^?&=:]+", uri.partition("://")[2])],
            }
            with _asked(ours, encode(job), worker) as (answer, descriptor):
                scratch = Path(f"/proc/self/fd/{descriptor}")
                try:
                    yield Inside(scratch / ROOT, answer["system"], tuple(answer["notes"]))
                except LivemountError as error:
                    _explain(error, scratch)
                    raise
            ours.shutdown(socket.SHUT_WR)
            worker.wait(END_SECONDS)
        finally:
            worker.close()


def _start(channel: socket.socket) -> Child:
    # As the first process of its PID namespace it takes along whatever it has started.
    spaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
    words = [*spaces, "--", sys.executable, "-m", "livemount.inside.worker", str(channel.fileno())]
    return Child(words, pass_fds=[channel.fileno()], environment=os.environ)


@contextmanager
def _asked(channel: socket.socket, job: bytes, worker: Child) -> Iterator[tuple[dict[str, Any], int]]:
    """What the worker answers, and a descriptor of the folder that it mounts in."""
    channel.settimeout(OPEN_SECONDS)
    text, descriptors = b"", list[int]()
    try:
        channel.sendall(job)
        text, descriptors, _, _ = socket.recv_fds(channel, MESSAGE_LIMIT, 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError as error:
        raise UnavailableError(f"the image was not opened within {OPEN_SECONDS:.0f} s") from error
    except OSError as error:
        raise LivemountError(f"the image cannot be opened: {worker.said() or error}") from error
    try:
        if not text:
            raise LivemountError(f"the image cannot be opened: {worker.said() or 'its worker has ended'}")
        yield result_of(json.loads(text)), descriptors[0]
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _explain(error: LivemountError, scratch: Path) -> None:
    """Say what the reader knows, not the kernel: which file of the system, and why the source could not be read."""
    error.message = error.message.replace(str(scratch / ROOT), "") or error.message
    with contextlib.suppress(OSError):
        failures = FAILED_RECALL.findall(DiskFiles(scratch / DISK).log.read_text(errors="replace"))
        if failures and error.hint is None:
            error.hint = failures[-1]
