"""An environment of its own for tests, and the commands of ours run in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import leftovers
from livemount.configure import HostSpec, service_pids
from livemount.core.settings import EnvironmentPaths, Settings
from livemount.local_cloud.console import Console

ROOT = Path(__file__).resolve().parents[2]


class Site:
    """An environment that is up, with the copies `web01` (BIOS) and `web02` (the same disk, started by UEFI)."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.paths: EnvironmentPaths = settings.paths()
        self.environment = {
            **os.environ,
            "LIVEMOUNT_HOME": str(settings.home),
            "LIVEMOUNT_ENVIRONMENT": settings.environment,
        }

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command of ours."""
        return subprocess.Popen(
            [sys.executable, "-m", "livemount.cli.main", *words],
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command of ours to its end; its exit code must be `code`. Returns both outputs."""
        process = self.start(*words)
        out, err = process.communicate(timeout=900)
        assert process.returncode == code, f"livemount {' '.join(words)}: {process.returncode}\n{out}\n{err}"
        return out + err

    def ask(self, *words: str) -> Any:
        """Run a command of ours with JSON output."""
        process = self.start(*words, "--output", "json")
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        return json.loads(out)

    def mount(self, name: str) -> dict[str, Any]:
        """What `livemount mounts --all` says of a mount."""
        found = [m for m in self.ask("mounts", "--all")["mounts"] if m["mount"] == name]
        assert found, f"no mount {name}"
        row: dict[str, Any] = found[-1]
        return row

    def wait_for_state(self, name: str, *states: str, timeout: float = 300) -> dict[str, Any]:
        """Wait until a mount is in one of the states."""
        self.wait_for(lambda: any(m["mount"] == name for m in self.ask("mounts", "--all")["mounts"]), f"mount {name}")
        self.wait_for(lambda: self.mount(name)["state"] in states, f"{name} in {states}", timeout)
        return self.mount(name)

    def wait_for(self, condition: Callable[[], object], what: str, timeout: float = 120) -> None:
        """Poll a condition."""
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"timed out: {what}"
            time.sleep(0.5)

    def service(self, name: str) -> int:
        """The process id of a service of the LM host."""
        pids = service_pids(self.host_spec())
        assert name in pids, f"{name} does not run: {pids}"
        return pids[name]

    def wait_for_service(self, name: str, other_than: int) -> None:
        """Wait until a service that was killed runs again."""
        self.wait_for(lambda: service_pids(self.host_spec()).get(name, other_than) != other_than, f"service {name}")

    def host_spec(self) -> HostSpec:
        """The LM host, as it was configured."""
        return HostSpec(
            environment=self.paths.name,
            home=self.settings.home,
            namespace=self.paths.host_namespace,
            address="10.77.0.2",
            token_file=self.paths.api_token,
            guest_tools=self.settings.cache / "guest-tools",
        )

    def console(self, mount: str) -> Console:
        """The serial console of a mount's guest."""
        outputs = self.mount(mount)["outputs"]
        return Console(Path(outputs["consoleSocket"]), Path(outputs["consoleLog"]))

    def end_all(self) -> None:
        """End all mounts: those that a failed test has left."""
        for mount in self.ask("mounts")["mounts"]:
            self.run("unmount", mount["mount"])

    def assert_nothing_left(self) -> None:
        """Nothing of any mount is left on the machine."""
        left = {kind: names for kind, names in leftovers.of_mounts(self.paths).items() if names}
        assert not left, left
