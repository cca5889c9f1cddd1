"""Media agents for tests: started as a service is, in a network namespace or here, and killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from livemount.core.errors import LivemountError
from livemount.core.run import in_namespace, run
from livemount.local_cloud.namespace import call_within
from livemount.media.agents import AgentUri, read_document
from livemount.media.certificates import Authority
from tests.support.foreign import NbdSubject, ResticSubject, free_port
from tests.support.suspend import suspend


class Agents:
    """An authority, a client's certificate, and agents."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder / "certificates")
        self.client = self.authority.client("lm1").folder
        self._running: list[RunningAgent] = []

    def add(self, name: str, address: str = "127.0.0.1", namespace: str = "", **config: Any) -> RunningAgent:
        """Start an agent; returns when it answers."""
        place = self.folder / name
        place.mkdir()
        settings = {
            "listen": f"{address}:{free_port()}",
            "certificates": str(self.authority.server(name, [address]).folder),
            "state": str(place / "state"),
            **config,
        }
        (place / "agent.yaml").write_text(yaml.safe_dump(settings))
        made = RunningAgent(place, settings["listen"], namespace, self.client)
        self._running.append(made)
        made.start()
        return made

    def uri(self, export: str, *agents: RunningAgent) -> str:
        """The URI of an export of these agents."""
        return f"agent://{','.join(agent.address for agent in agents)}/{export}?certificates={self.client}"

    def close(self) -> None:
        """End all agents."""
        for agent in self._running:
            agent.kill()


class RunningAgent:
    """An agent's process."""

    def __init__(self, folder: Path, address: str, namespace: str, client: Path) -> None:
        self.folder = folder
        self.address = address
        self.state = folder / "state"
        self._namespace = namespace
        self._client = client
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; returns when it answers a client."""
        words = [sys.executable, "-m", "livemount.agent", "--config", f"{self.folder}/agent.yaml"]
        with (self.folder / "log").open("ab") as log:
            inside = in_namespace(self._namespace) if self._namespace else []
            self._process = subprocess.Popen([*inside, *words], stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.status()
                return
            except LivemountError:
                assert self._process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def status(self) -> Any:
        """What `livemount agent status` shows."""
        uri = AgentUri.parse(f"agent://{self.address}/.status", self._client)
        return call_within(self._namespace, lambda: read_document(uri)) if self._namespace else read_document(uri)

    def signal(self, number: signal.Signals) -> None:
        """Send the agent a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def suspend(self) -> None:
        """Let it not answer, until SIGCONT."""
        assert self._process is not None
        suspend(self._process.pid)

    def wait(self) -> None:
        """Wait for its end."""
        assert self._process is not None
        self._process.wait(60)

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class AgentSubject(ResticSubject):
    """A copy of ours, served by an agent: what can happen to it and to a server can happen."""

    can = ResticSubject.can | NbdSubject.can
    patience = 2.0  # it opens a repository before it greets

    def __init__(self, folder: Path) -> None:
        self._agents = Agents(folder)
        self._agent: RunningAgent | None = None
        super().__init__(folder)

    def serve(self, disk: Path) -> None:
        super().serve(disk)
        self.password = None
        if self._agent is None:
            repository = {"repository": str(self.repository), "password_file": str(self.folder / "password")}
            self._agent = self._agents.add("store1", repositories={"main": repository})

    def backup(self, disk: Path) -> str:
        uri = super().backup(disk)
        _, snapshot, file = uri.replace("&file=", "?snapshot=").split("?snapshot=")
        self._export = f"main/{snapshot}{file}"
        return uri

    @property
    def uri(self) -> str:
        assert self._agent is not None
        return self._agents.uri(self._export, self._agent)

    def missing(self) -> str:
        return self.uri.replace("/main/", "/other/")

    def stop(self) -> None:
        assert self._agent is not None
        self._agent.kill()

    def start(self) -> None:
        assert self._agent is not None
        self._agent.start()

    def hang(self) -> None:
        assert self._agent is not None
        self._agent.suspend()

    def go_on(self) -> None:
        assert self._agent is not None
        self._agent.signal(signal.SIGCONT)

    def spoil_credentials(self) -> None:
        another = Authority(self.folder / "another").client("lm1").folder
        for name in ("client-cert.pem", "client-key.pem"):
            (another / name).replace(self._agents.client / name)

    def close(self) -> None:
        self._agents.close()


@contextmanager
def two_namespaces() -> Iterator[tuple[str, str]]:
    """A network namespace of an agent, connected with a reader's: 10.79.0.1 and 10.79.0.2."""
    tag = uuid.uuid4().hex[:6]
    names = f"lma-{tag}", f"lmr-{tag}"
    try:
        for name in names:
            run("ip", "netns", "add", name)
            run("ip", "link", "set", "lo", "up", namespace=name)
        run("ip", "-n", names[0], "link", "add", "lma", "type", "veth", "peer", "name", "lmr", "netns", names[1])
        for name, device, address in ((names[0], "lma", "10.79.0.1"), (names[1], "lmr", "10.79.0.2")):
            run("ip", "address", "add", f"{address}/24", "dev", device, namespace=name)
            run("ip", "link", "set", device, "up", namespace=name)
        yield names
    finally:
        for name in names:
            run("ip", "netns", "delete", name, check=False)
