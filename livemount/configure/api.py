"""Configures a live-mount host by the Ansible roles, and tells whether its services run.

Two calls for one host at the same time wait for each other. A call that was cut off is made good by the next one: the
roles compare what is with what should be. `remove` ends the services before it touches files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from pydantic import Field, ValidationError, field_validator

from livemount.configure.playbook import Inventory, play
from livemount.configure.services import ServiceManager, service_manager
from livemount.core.errors import LivemountError, UnavailableError, UsageError
from livemount.core.machine import Frozen
from livemount.core.quota import RECALL_QUOTA, QuotaText
from livemount.core.settings import EnvironmentPaths, HostPaths, Settings
from livemount.host.api import Health

ROLES = Path(__file__).resolve().parents[2] / "ansible"
SERVICES = ("driver", "target", "boot", "api", "manager")
START_SECONDS = 60
GROUP = "live_mount_hosts"
# 108 bytes with the final NUL (unix(7)), less what supervisord appends while it binds: a dot and its pid.
SOCKET_PATH_LIMIT = 108 - 1 - len(".4194304")


def plain_path(path: Path) -> Path:
    """The path. Raises `UsageError` for one that cannot stand in units, INI files and mountinfo(5)."""
    if not re.fullmatch(r"/[\w./+@-]*", str(path), re.ASCII):
        raise UsageError(
            f"{str(path)!r} cannot be a path of a live-mount host",
            hint="an absolute path of letters, digits and ._+@-/",
        )
    return path


class HostSpec(Frozen):
    """A live-mount host: this machine, or a network namespace of it."""

    environment: str
    home: Path
    """The home folder; the host's own is `HOME/ENVIRONMENT/host`."""
    namespace: str | None = None
    """Network namespace of what guests reach; `None`: the machine's own network."""
    address: str
    """IPv4 address at which guests reach the iSCSI target and the boot server."""
    token_file: Path
    """Holds the API token; made by the caller."""
    port: int | None = Field(default=None, ge=1, le=65535)
    """Port of `address` at which the API is served over HTTPS; `None`: at its unix socket only."""
    certificates: Path | None = None
    """For `port`: folder with `server-cert.pem` and `server-key.pem`."""
    guest_tools: Path
    """What guest preparation puts into initrds (`python -m livemount.guest.tools FOLDER`)."""
    recall_quota: QuotaText = RECALL_QUOTA
    """Room of all recall stores: bytes, with a unit or not, or a part of their file system."""
    keep_recall_stores: bool = False
    """Keep what was recalled for the next mount of the same copy, within the quota: data of a copy, in the clear."""
    python: Path = Path(sys.executable)
    """Interpreter that the services run under."""
    variables: dict[str, str] = Field(default_factory=dict)
    """More environment variables for all services; no secrets."""

    @field_validator("variables")
    @classmethod
    def _one_line(cls, variables: dict[str, str]) -> dict[str, str]:
        for name, value in variables.items():
            if not value.isprintable() or set(value) & set('"\\'):
                raise UsageError(f"{name}: {value!r} cannot stand in a unit", hint='without ", \\ and line breaks')
        return variables

    @field_validator("home", "token_file", "guest_tools", "python")
    @classmethod
    def _plain(cls, path: Path) -> Path:
        return plain_path(path)

    @property
    def paths(self) -> EnvironmentPaths:
        """The folders of its environment."""
        return EnvironmentPaths(self.environment, self.home / self.environment)

    @property
    def host(self) -> HostPaths:
        """The host's own folders."""
        return HostPaths(self.paths.host)


def configure(spec: HostSpec) -> None:
    """Make the host what the roles say; returns when its services run.

    Raises `LivemountError` that names the failed task and its message.
    """
    longest = spec.host.run / "supervisor.sock"
    if len(os.fsencode(longest)) > SOCKET_PATH_LIMIT:
        raise UsageError(
            f"the path {longest} is too long for a socket",
            hint=f"LIVEMOUNT_HOME must be shorter by {len(os.fsencode(longest)) - SOCKET_PATH_LIMIT} bytes",
        )
    _play(spec, "site.yml")


def remove(spec: HostSpec) -> None:
    """End the host's services and left-over processes, unmount what they mounted, delete its files.

    Nothing happens when there is no such host.
    """
    if spec.host.root.exists() or service_pids(spec):
        _play(spec, "remove.yml")


def check(spec: HostSpec) -> bool:
    """Whether all services run and the API says that the host is well."""
    return not problems(spec)


def problems(spec: HostSpec) -> list[str]:
    """What is wrong with the host, one line each; empty when all is well."""
    running = service_pids(spec)
    missing = [f"the service {name} does not run" for name in SERVICES if name not in running]
    return missing or _health(spec.host.api_socket)


def wait_ready(spec: HostSpec, timeout: float = 60) -> None:
    """Return when the host is well; raises `UnavailableError` with what is wrong after `timeout` seconds."""
    end = time.monotonic() + timeout
    while found := problems(spec):
        if time.monotonic() > end:
            raise UnavailableError(
                f"the live-mount host of environment {spec.environment} is not ready: {'; '.join(found)}",
                hint=f"its logs are in {spec.host.log}",
            )
        time.sleep(0.2)


def service_pids(spec: HostSpec) -> dict[str, int]:
    """The process of each service that runs, by the service's name."""
    return _manager(spec).pids()


def restart(spec: HostSpec, service: str) -> None:
    """Stop and start one service; returns when it runs."""
    if service not in SERVICES:
        raise UsageError(f"a live-mount host has no service {service!r}", hint=f"it has {', '.join(SERVICES)}")
    _manager(spec).restart(service)


def roles_digest() -> str:
    """SHA-256 (hex) of the roles and playbooks: another digest means that hosts should be configured again."""
    digest = hashlib.sha256()
    for path in sorted(_roles().rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(ROLES)}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _roles() -> Path:
    if not (ROLES / "site.yml").exists():
        raise LivemountError(f"the Ansible roles are not at {ROLES}", hint="install livemount from its source folder")
    return ROLES


def _manager(spec: HostSpec) -> ServiceManager:
    return service_manager(spec.environment, spec.host.root)


def _health(path: Path) -> list[str]:
    try:
        # httpx leaves the socket open when nobody listens.
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(path))
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=10) as client:
            answer = client.get("http://localhost/v1/health")
        health = Health.model_validate_json(answer.content)
    except (OSError, httpx.HTTPError, ValidationError) as error:
        return [f"the API at {path} does not answer: {error}"]
    return [] if health.ok else health.problems or ["the API says it is not well"]


def _play(spec: HostSpec, playbook: str) -> int:
    """Run one of the playbooks and return how many tasks changed something."""
    variables: dict[str, Any] = {
        "live_mount_environment": spec.environment,
        "live_mount_home": str(spec.home),
        "live_mount_cache": str(Settings().cache),
        "live_mount_namespace": spec.namespace or "",
        "live_mount_address": spec.address,
        "live_mount_token_file": str(spec.token_file),
        "live_mount_api_port": spec.port or 0,
        "live_mount_api_certificates": str(spec.certificates or ""),
        "live_mount_guest_tools": str(spec.guest_tools),
        "live_mount_recall_quota": spec.recall_quota,
        "live_mount_keep_recall_stores": spec.keep_recall_stores,
        "live_mount_python": str(spec.python),
        "live_mount_variables": spec.variables,
        "live_mount_start_seconds": START_SECONDS,
    }
    here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory: Inventory = {GROUP: {"hosts": {"localhost": here}, "vars": variables}}
    with _alone(spec.paths.root):
        return play(_roles(), playbook, inventory, spec.host.log / "ansible.log")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
