"""How the driver's processes talk: one JSON object a line over unix sockets; errors keep their class."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from livemount.core import errors
from livemount.core.errors import LivemountError, NoSpaceError, UnavailableError

Message = dict[str, Any]

MESSAGE_LIMIT = 1 << 20


@contextmanager
def address(path: Path) -> Iterator[str]:
    """An address for a socket's path of any length (the kernel's limit is 107 bytes)."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """A listening socket that only its owner can reach, in place of one that a dead process left."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    with address(path) as name:
        before = os.umask(0o177)
        try:
            server.bind(name)
        finally:
            os.umask(before)
    server.listen(64)
    return server


def connect(path: Path, timeout: float | None) -> socket.socket:
    """Connect to a listening socket. Raises `OSError`."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        with address(path) as name:
            client.connect(name)
    except OSError:
        client.close()
        raise
    return client


def encode(message: Message) -> bytes:
    """A message as it goes over the wire."""
    return json.dumps(message).encode() + b"\n"


def error_message(error: Exception) -> Message:
    """What the caller is told of an error."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error = NoSpaceError(f"no space left on the file system of {error.filename or 'the stores'}")
    kind = type(error).__name__ if isinstance(error, LivemountError) else LivemountError.__name__
    text = error.message if isinstance(error, LivemountError) else f"{type(error).__name__}: {error}"
    return {"error": {"kind": kind, "message": text, "hint": getattr(error, "hint", None)}}


def result_of(answer: Message) -> Any:
    """The result an answer carries; raises the error it carries instead."""
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    kind = getattr(errors, str(error["kind"]), LivemountError)
    raise kind(error["message"], hint=error["hint"])


def call(path: Path, message: Message, *, timeout: float | None = None) -> Any:
    """Send one request and return its result. Raises `UnavailableError` when nobody answers."""
    try:
        with connect(path, timeout) as client, client.makefile("rb") as lines:
            client.sendall(encode(message))
            line = lines.readline(MESSAGE_LIMIT)
    except OSError as error:
        raise UnavailableError(f"nobody answers at {path}: {error.strerror or error}") from error
    if not line.endswith(b"\n"):
        raise UnavailableError(f"the process behind {path} ended before it answered")
    return result_of(json.loads(line))
