"""Asks the service manager of a live-mount host, systemd or the host's own supervisord, about its services."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from livemount.core.errors import UnavailableError
from livemount.core.run import run


class ServiceManager(Protocol):
    """What runs the services of one host."""

    def pids(self) -> dict[str, int]:
        """The process of each service that runs, by the service's name."""

    def restart(self, service: str) -> None:
        """Stop and start a service; returns when it runs, raises `LivemountError` when it does not."""


def service_manager(environment: str, root: Path, prefix: str = "livemount-") -> ServiceManager:
    """The service manager that the roles use on this machine (the test of sd_booted(3))."""
    if Path("/run/systemd/system").is_dir():
        return Systemd(f"{prefix}{environment}-")
    return Supervisor(root / "etc" / "supervisord.conf")


class Supervisor:
    """The host's own supervisord."""

    def __init__(self, configuration: Path) -> None:
        self._configuration = configuration

    def pids(self) -> dict[str, int]:
        if not self._configuration.exists():
            return {}
        status = run("supervisorctl", "-c", self._configuration, "status", check=False).stdout
        return {name: int(pid) for name, pid in re.findall(r"^(\S+) +RUNNING +pid (\d+)", status, re.MULTILINE)}

    def restart(self, service: str) -> None:
        if not self._configuration.exists():
            raise UnavailableError(f"there is no live-mount host at {self._configuration.parent.parent}")
        run("supervisorctl", "-c", self._configuration, "restart", service)


class Systemd:
    """systemd; the host's units have a common prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def pids(self) -> dict[str, int]:
        units = run("systemctl", "show", "--property=Id,MainPID,ActiveState", f"{self._prefix}*.service").stdout
        running = {}
        for unit in units.split("\n\n"):
            fields = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line)
            if fields.get("ActiveState") == "active":
                running[fields["Id"].removeprefix(self._prefix).removesuffix(".service")] = int(fields["MainPID"])
        return running

    def restart(self, service: str) -> None:
        run("systemctl", "restart", f"{self._prefix}{service}.service")
