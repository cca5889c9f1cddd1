"""How tgtd is started: in the foreground, by the host's supervisor or a test, next to any other tgtd of the machine.

tgtd keeps nothing on disk: after a restart it has no targets until `TgtTarget.create` is called again for each mount.
Its control socket is the value of `TGT_IPC_SOCKET` with the control port appended (`.0`), and `….0.lock` beside it.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from pathlib import Path

from livemount.core.errors import ConflictError, LivemountError, UsageError
from livemount.core.settings import HostPaths

PORT = 3260
IO_THREADS = 16
"""For each LUN. Measured: see docs/architecture.md."""
SOCKET_PATH_LIMIT = 107
"""Bytes in `sockaddr_un.sun_path`, less the closing zero."""


def control_socket(socket: Path) -> Path:
    """The file tgtd really listens on, given `TGT_IPC_SOCKET`. Raises `UsageError` when its path is too long."""
    path = socket.with_name(f"{socket.name}.0")
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise UsageError(
            f"the path of tgtd's control socket is too long: {path}", hint="choose a shorter LIVEMOUNT_HOME"
        )
    return path


def tgtd_command(portal: str, port: int = PORT) -> list[str]:
    """The words that start tgtd in the foreground, listening on one address. Raises `UsageError` for a bad address."""
    try:
        address = ipaddress.ip_address(portal)
    except ValueError as error:
        raise UsageError(f"the portal {portal!r} is not an IP address") from error
    where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    return ["tgtd", "--foreground", "--nr_iothreads", str(IO_THREADS), "--iscsi", f"portal={where}"]


def tgtd_environment(host: HostPaths) -> dict[str, str]:
    """The environment tgtd and its clients share."""
    return {**os.environ, "TGT_IPC_SOCKET": str(host.target_socket)}


def exec_tgtd(host: HostPaths, portal: str, port: int = PORT) -> None:
    """Become tgtd. Returns never; raises `LivemountError` when the address is taken or tgtd is not installed."""
    control_socket(host.target_socket)
    _check_free(portal, port)
    host.run.mkdir(parents=True, exist_ok=True)
    command = tgtd_command(portal, port)
    try:
        os.execvpe(command[0], command, tgtd_environment(host))  # noqa: S606 (no shell is the point)
    except FileNotFoundError as error:
        raise LivemountError("the program 'tgtd' is not installed", hint="apt-get install tgt") from error


def _check_free(portal: str, port: int) -> None:
    """tgtd itself would start and run on without a portal."""
    family = socket.AF_INET6 if ":" in portal else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((portal, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(
                    f"{portal} port {port} is in use by another program", hint="is another iSCSI target running?"
                ) from error
            raise UsageError(f"cannot listen on {portal} port {port}: {error.strerror}") from error
