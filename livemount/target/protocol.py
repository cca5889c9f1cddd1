"""tgtd's management protocol: what `tgtadm` speaks on the control socket, without `tgtadm`.

`tgtadm` takes a CHAP password as an argument only, where every user of the machine can read it; so requests are written
to the socket here. A request is `struct tgtadm_req` and a zero-terminated list of `key=value`; the answer is
`struct tgtadm_rsp` and text (tgt 1.0.85: usr/tgtadm.h, usr/mgmt.c; unchanged since 1.0.24 of 2012). tgtd handles one
request at a time and answers only to its own user. `handshake` finds out whether the layout is still this one.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

from livemount.core.errors import ConflictError, LivemountError, NotFoundError, UnavailableError, UnsupportedError

REQUEST = struct.Struct("=ii64sIiQQIIIIII")
RESPONSE = struct.Struct("=II")
TIMEOUT = 30.0
"""Seconds. tgtd answers from its event loop, which only stalls while a backing file's open does."""
RESPONSE_LIMIT = 64 << 20


class Mode(IntEnum):
    """`enum tgtadm_mode`: what a request is about."""

    SYSTEM = 0
    TARGET = 1
    DEVICE = 2
    CONNECTION = 6
    ACCOUNT = 7


class Operation(IntEnum):
    """`enum tgtadm_op`."""

    NEW = 0
    DELETE = 1
    SHOW = 2
    BIND = 3
    UNBIND = 4
    UPDATE = 5


class Code(IntEnum):
    """`enum tgtadm_errno`: the ones we tell apart."""

    NO_TARGET = 4
    NO_LUN = 5
    NO_SESSION = 6
    NO_CONNECTION = 7
    TARGET_EXIST = 9
    LUN_EXIST = 10
    ACL_EXIST = 12
    USER_EXIST = 14
    NO_USER = 15
    TARGET_ACTIVE = 19
    LUN_ACTIVE = 20


ABSENT = frozenset({Code.NO_TARGET, Code.NO_LUN, Code.NO_SESSION, Code.NO_CONNECTION, Code.NO_USER})
TAKEN = frozenset({Code.TARGET_EXIST, Code.LUN_EXIST, Code.ACL_EXIST, Code.USER_EXIST})
ACTIVE = frozenset({Code.TARGET_ACTIVE, Code.LUN_ACTIVE})


class TgtError(LivemountError):
    """tgtd refused a request; `code` is its `tgtadm_errno`."""

    def __init__(self, what: str, code: int) -> None:
        name = next((known.name for known in Code if known == code), f"error {code}")
        super().__init__(f"tgtd refused to {what}: {name}", hint="see tgtd's log")
        self.code = code


class NoSuchThingError(TgtError, NotFoundError):
    """The target, LUN, session or account is not there."""


class TakenError(TgtError, ConflictError):
    """It is there already."""


class ActiveError(TgtError, ConflictError):
    """It is in use: commands are in flight."""


def request(
    control: Path,
    mode: Mode,
    operation: Operation,
    *,
    tid: int = -1,
    sid: int = 0,
    cid: int = 0,
    lun: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> str:
    """Ask the tgtd that listens on `control`; returns its text.

    Raises `UnavailableError` when no tgtd answers and a `TgtError` when it refuses. No `parameters` value reaches a
    log or a message: one may be a secret.
    """
    words = dict(parameters or {})
    for value in words.values():
        if "," in value or "\0" in value:
            raise UnsupportedError("tgt cannot take a comma or a zero byte in a path, name or secret")
    body = b""
    if words:
        body = ",".join(f"{key}={value}" for key, value in words.items()).encode() + b"\0"
    head = REQUEST.pack(mode, operation, b"iscsi", REQUEST.size + len(body), tid, sid, lun, cid, 0, 0, 0, 0, 0)
    what = f"{operation.name.lower()} {mode.name.lower()}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT)
            connection.connect(str(control))
            connection.sendall(head + body)
            code, length = RESPONSE.unpack(_receive(connection, RESPONSE.size))
            if not RESPONSE.size <= length <= RESPONSE_LIMIT:
                raise UnsupportedError(f"tgtd gave an answer of {length} bytes", hint="is this tgt 1.0.85?")
            text = _receive(connection, length - RESPONSE.size)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise UnavailableError(
            f"tgtd does not run: nothing listens on {control}", hint="start the host's services (supervisor or systemd)"
        ) from error
    except OSError as error:
        raise UnavailableError(f"tgtd on {control} does not answer: {error}", hint="see tgtd's log") from error
    if code == 0:
        return text.rstrip(b"\0").decode(errors="replace")
    raise _error(what, code)


def _error(what: str, code: int) -> TgtError:
    for codes, kind in ((ABSENT, NoSuchThingError), (TAKEN, TakenError), (ACTIVE, ActiveError)):
        if code in codes:
            return kind(what, code)
    return TgtError(what, code)


def handshake(control: Path) -> None:
    """Make sure that tgtd speaks this layout: raises `UnsupportedError` when it does not."""
    text = request(control, Mode.SYSTEM, Operation.SHOW)
    if not text.startswith("System:") or "rdwr" not in text:
        raise UnsupportedError(
            f"what listens on {control} does not answer like tgt 1.0.85", hint="install Debian's package tgt"
        )


def _receive(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = connection.recv(min(length - len(data), 1 << 16))
        if not part:
            raise ConnectionResetError("it closed the connection (is this user tgtd's user?)")
        data += part
    return bytes(data)
