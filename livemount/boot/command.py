"""How the boot server's nginx is configured and started: everything of it below one host's folder."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import socket
import stat
from pathlib import Path

from livemount.boot.api import UP_PATH
from livemount.boot.script import check_address, template
from livemount.core.errors import ConflictError, DeniedError, LivemountError, UsageError
from livemount.core.settings import HostPaths

PORT = 80
WORKER = "www-data"
"""The user nginx's worker runs as, and its group: all it can read of the host are the scripts."""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
SAFE_PATH = re.compile(r"/[A-Za-z0-9_./-]+")


def render_config(host: HostPaths, address: str, port: int = PORT, worker: str = WORKER) -> str:
    """The configuration's text. Raises `UsageError` for an address or path that cannot stand in it."""
    check_address(address)
    if not SAFE_PATH.fullmatch(str(host.root)):
        raise UsageError(
            f"the path {host.root} holds characters nginx cannot take", hint="choose another LIVEMOUNT_HOME"
        )
    return template(
        "nginx.conf.j2", host=host, listen=f"{address}:{port}", user=worker, up_path=UP_PATH, temporary=TEMPORARY
    )


def prepare(host: HostPaths, address: str, port: int = PORT, worker: str = WORKER) -> Path:
    """Lay out nginx's folders and write its configuration; returns its path.

    Raises `DeniedError` when the worker could not reach the scripts.
    """
    config = host.root / "boot" / "nginx.conf"
    text = render_config(host, address, port, worker)
    for folder in (host.run / "nginx", host.log, host.scripts):
        folder.mkdir(parents=True, exist_ok=True)
    own_scripts(host.scripts, worker)
    _check_reachable(host.scripts, worker)
    temporary = config.with_name(config.name + ".new")
    temporary.write_text(text)
    temporary.replace(config)
    return config


def nginx_command(config: Path) -> list[str]:
    """The words that start nginx in the foreground."""
    return ["nginx", "-e", "stderr", "-c", str(config)]


def exec_nginx(host: HostPaths, address: str, port: int = PORT, worker: str = WORKER) -> None:
    """Become nginx. Returns never; raises `LivemountError` when the address is taken or nginx is not installed."""
    command = nginx_command(prepare(host, address, port, worker))
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"{address} port {port} is in use by another program") from error
            raise UsageError(f"cannot listen on {address} port {port}: {error.strerror}") from error
    try:
        os.execvp(command[0], command)  # noqa: S606 (no shell is the point)
    except FileNotFoundError as error:
        raise LivemountError("the program 'nginx' is not installed", hint="apt-get install nginx-light") from error


def worker_group(worker: str = WORKER) -> int:
    """The group id of nginx's worker. Raises `LivemountError` when there is no such user."""
    try:
        return pwd.getpwnam(worker).pw_gid
    except KeyError as error:
        raise LivemountError(f"there is no user {worker!r} for nginx's worker", hint="install nginx-light") from error


def own_scripts(scripts: Path, worker: str = WORKER) -> None:
    """Let the worker pass through the scripts' folders, and nobody else look into them."""
    group = worker_group(worker)
    for folder in (scripts.parent, scripts):
        os.chown(folder, -1, group)
        folder.chmod(0o710)


def _check_reachable(folder: Path, worker: str) -> None:
    user = pwd.getpwnam(worker)
    groups = {user.pw_gid, *(entry.gr_gid for entry in grp.getgrall() if worker in entry.gr_mem)}
    for part in (folder, *folder.parents):
        status = part.stat()
        mode = status.st_mode
        if status.st_uid == user.pw_uid:
            enters = mode & stat.S_IXUSR
        elif status.st_gid in groups:
            enters = mode & stat.S_IXGRP
        else:
            enters = mode & stat.S_IXOTH
        if not enters and user.pw_uid != 0:
            raise DeniedError(
                f"nginx's user {worker} cannot enter {part}, so no boot script could be read",
                hint=f"chmod o+x {part}, or choose another LIVEMOUNT_HOME",
            )
