"""Agents in a network namespace of their own, and readers in another: kills, fail-over, refusals, the cache."""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from livemount.cli.main import app
from livemount.core.errors import CorruptError, DeniedError, LivemountError, NotFoundError, UnavailableError
from livemount.core.secrets import write_secret
from livemount.driver.recaller import Recaller
from livemount.local_cloud.namespace import call_within
from livemount.media import agents as media_agents
from livemount.media import certificates, open_source
from livemount.media.agent_copies import AgentCopies
from livemount.media.agents import AgentUri
from livemount.media.disks import DiskInput
from livemount.media.repository import Repository, Rules
from tests.support.agents import Agents, two_namespaces
from tests.support.foreign import MIB, PASSWORD, write_disk
from tests.support.stores import Servers

pytestmark = pytest.mark.integration

ADDRESS = "10.79.0.1"


@pytest.fixture
def agents(tmp_path: Path) -> Iterator[Agents]:
    made = Agents(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """A repository with a copy of one disk, which lies beside it: for those that only read them."""
    folder = tmp_path_factory.mktemp("shared")
    write_secret(folder / "password", PASSWORD)
    made = Repository.init(folder / "repository", folder / "password")
    made.backup(write_disk(folder / "disk.raw"), "web01")
    return made


@pytest.fixture
def disk(shared: Repository) -> Path:
    return shared.path.with_name("disk.raw")


def exports(disk: Path, **more: Any) -> dict[str, Any]:
    return {"web01": {"source": disk.as_uri(), **more}}


@pytest.fixture
def repository(shared: Repository, tmp_path: Path) -> Repository:
    """One of its own, for those that change it or harm it."""
    shutil.copytree(shared.path, tmp_path / "repository")
    write_secret(tmp_path / "password", PASSWORD)
    return Repository.open(tmp_path / "repository", tmp_path / "password")


def repositories(made: Repository) -> dict[str, Any]:
    return {"main": {"repository": str(made.path), "password_file": str(made.path.with_name("password"))}}


class Readers:
    """Threads that read random ranges and compare them, until they are told to end."""

    def __init__(self, read: Any, content: bytes) -> None:
        self._read = read
        self._content = content
        self.errors: list[BaseException] = []
        self.count = 0
        self._progress = threading.Condition()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(6)]
        for thread in self._threads:
            thread.start()

    def _run(self, seed: int) -> None:
        choose = random.Random(seed)
        while not self._over.is_set():
            offset = choose.randrange(len(self._content) - MIB)
            length = choose.choice((512, 65536, MIB // 4))
            try:
                if self._read(offset, length) != self._content[offset : offset + length]:
                    raise AssertionError(f"wrong bytes at {offset}")
            except BaseException as error:
                self.errors.append(error)
                self._over.set()
            with self._progress:
                self.count += 1
                self._progress.notify_all()

    def wait_for_more(self, count: int = 20) -> None:
        """Wait until some more reads were answered."""
        with self._progress:
            wanted = self.count + count
            assert self._progress.wait_for(lambda: self.count >= wanted or self._over.is_set(), 120)

    def end(self) -> None:
        """End them; nothing was wrong."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert self.errors == []


def test_reads_from_another_namespace_go_on_when_the_agent_was_killed(agents: Agents, disk: Path) -> None:
    with two_namespaces() as (there, here):
        agent = agents.add("store1", ADDRESS, there, exports=exports(disk, cache=False))
        uri, content = agents.uri("web01", agent), disk.read_bytes()
        with pytest.raises(UnavailableError):
            open_source(uri, None)  # the machine's own network has no way there

        def mounted() -> None:
            recall = Recaller(uri, None, hold=300)
            source = recall.source()
            assert source.identity == open_source(disk.as_uri(), None).identity
            assert sum(extent.length for extent in source.extents(0, source.size) if extent.hole) >= MIB
            readers = Readers(lambda offset, length: recall(offset, length, False), content)
            try:
                for _ in range(2):
                    readers.wait_for_more()
                    agent.kill()
                    agent.start()
                readers.wait_for_more()
            finally:
                readers.end()
                source.close()

        call_within(here, mounted)
        agents.close()


def test_another_agent_takes_over_and_back(
    agents: Agents, shared: Repository, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one that was away may be asked again at once.
    monkeypatch.setattr(media_agents, "FAILURE_IS_NEWS", 0.0)
    first = agents.add("store1", repositories=repositories(shared))
    second = agents.add("store2", repositories=repositories(shared))
    (copy,) = shared.copies()
    source = open_source(agents.uri(f"main/{copy.id}/web01/disk0.raw", first, second), None)
    readers = Readers(source.read, disk.read_bytes())
    try:
        for agent in (first, second):
            readers.wait_for_more()
            agent.kill()  # no read fails
            readers.wait_for_more()
            agent.start()
    finally:
        readers.end()
    first.kill()
    second.kill()
    with pytest.raises(UnavailableError):
        source.read(0, 512)
    source.close()


def test_an_agent_with_another_content_does_not_take_over(agents: Agents, disk: Path, tmp_path: Path) -> None:
    other = write_disk(tmp_path / "other.raw", seed=5)
    first = agents.add("store1", exports=exports(disk, identity="a" * 64))
    second = agents.add("store2", exports=exports(other, identity="b" * 64))
    source = open_source(agents.uri("web01", first, second), None)
    assert source.identity == "a" * 64
    first.kill()
    for _ in range(3):
        with pytest.raises(LivemountError):
            source.read(0, 512)
    source.close()


def test_an_agent_serves_and_pins_copies_of_a_repository_elsewhere(agents: Agents, disk: Path, tmp_path: Path) -> None:
    servers = Servers("rest", tmp_path / "s")
    try:
        subject = servers.subject(tmp_path)
        made = Repository.init(subject.place, subject.password)
        copy = made.backup(disk, "web01")
        config = {"repository": str(subject.place), "password_file": str(subject.password)}
        agent = agents.add("store1", repositories={"vault": config})
        (listed,) = AgentCopies(AgentUri.parse(agents.uri("vault", agent))).copies()
        assert listed.id == copy.id
        source = open_source(listed.source, None)
        assert source.read(0, source.size) == disk.read_bytes()
        source.close()
        (pin,) = made.pins.all()[copy.id]
        assert pin.reason.startswith("served by the media agent on ")
    finally:
        servers.stop()


def test_only_what_is_configured_is_served(agents: Agents, shared: Repository, disk: Path) -> None:
    agent = agents.add("store1", exports=exports(disk), repositories=repositories(shared))
    (copy,) = shared.copies()
    for export in (
        "web02",
        "",
        str(disk),
        disk.as_uri(),
        "web01/x",
        f"other/{copy.id}/web01/disk0.raw",
        f"main/{copy.id}/../web01/disk0.raw",
        f"main/{copy.id}/web01/disk7.raw",
        f"main/{'0' * 64}/web01/disk0.raw",
        ".copies/other",
    ):
        with pytest.raises(LivemountError) as caught:
            open_source(agents.uri(export, agent), None)
        assert type(caught.value) in (NotFoundError, LivemountError) or ".." in export, export
    # A client without a certificate, and one without TLS.
    for uri in (f"nbds://{agent.address}/web01", f"nbd://{agent.address}/web01"):
        done = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, check=False)
        assert done.returncode != 0
    # What is written is refused.
    certified = f"nbds://{agent.address}/web01?tls-certificates={agents.client}"
    assert "is_read_only: true" in subprocess.run(["nbdinfo", certified], capture_output=True, text=True).stdout


def test_what_is_wrong_with_a_certificate_is_said(
    agents: Agents, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents.add("store1", exports=exports(disk))
    monkeypatch.setattr(certificates, "LIFE", timedelta(seconds=-1))
    expired = agents.authority.client("expired").folder
    monkeypatch.undo()

    def refused(folder: Path) -> str:
        with pytest.raises(DeniedError) as caught:
            open_source(f"agent://{agent.address}/web01?certificates={folder}", None)
        return str(caught.value)

    assert "client-cert.pem expired on " in refused(expired)
    mixed = certificates.Authority(tmp_path / "other").client("lm1").folder
    assert "cannot be trusted" in refused(mixed)
    (mixed / "ca-cert.pem").write_bytes((agents.client / "ca-cert.pem").read_bytes())
    assert "is not by the authority" in refused(mixed)
    (mixed / "client-cert.pem").unlink()
    assert "there is no" in refused(mixed)
    # Another address than the certificate is for.
    with pytest.raises(DeniedError):
        open_source(agents.uri("web01", agent).replace("127.0.0.1", "localhost"), None)
    # A server whose certificate has expired does not begin.
    monkeypatch.setattr(certificates, "LIFE", timedelta(seconds=-1))
    late = agents.authority.server("late", ["127.0.0.1"]).folder
    configuration = tmp_path / "late.yaml"
    configuration.write_text(f"certificates: {late}\nstate: {tmp_path}/late\nexports: {{}}\n")
    words = [sys.executable, "-m", "livemount.cli.main", "agent", "serve", "--config", str(configuration)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == DeniedError.exit_code
    assert "expired on" in done.stderr


def test_an_agent_that_is_asked_to_end_waits_for_nobody(agents: Agents, disk: Path) -> None:
    agent = agents.add("store1", exports=exports(disk))
    source, content = open_source(agents.uri("web01", agent), None), disk.read_bytes()
    assert source.read(0, 512) == content[:512]
    agent.signal(signal.SIGTERM)
    agent.wait()
    with pytest.raises(UnavailableError):
        source.read(MIB, 512)
    agent.start()
    source.close()
    source = open_source(agents.uri("web01", agent), None)
    assert source.read(MIB, 512) == content[MIB : MIB + 512]
    agent.signal(signal.SIGINT)
    agent.wait()
    with pytest.raises(UnavailableError):
        source.read(2 * MIB, 512)
    source.close()


def test_an_agent_that_is_killed_in_the_greeting_is_away(agents: Agents) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(struct.pack(">QQH", 0x4E42444D41474943, 0x49484156454F5054, 3))
                connection.recv(20, socket.MSG_WAITALL)  # flags, then the wish for TLS, which is granted
                connection.sendall(struct.pack(">QIII", 0x3E889045565A9, 5, 1, 0))
                connection.recv(64)  # it begins to speak TLS

        server = threading.Thread(target=greet)
        server.start()
        uri = f"agent://127.0.0.1:{listening.getsockname()[1]}/web01?certificates={agents.client}"
        with pytest.raises(UnavailableError, match="hung up"):
            open_source(uri, None)
        server.join()


def disk_use(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_the_cache_is_used_and_bounded(agents: Agents, disk: Path) -> None:
    agent = agents.add("store1", exports=exports(disk), cache_quota="64MiB")
    content = disk.read_bytes()

    def read_all() -> None:
        source = open_source(agents.uri("web01", agent), None)
        assert source.read(0, source.size) == content
        source.close()

    read_all()
    before = agent.status()["counters"]
    assert before["source_bytes"] == len(content)
    read_all()  # a second host
    assert agent.status()["counters"]["source_reads"] == before["source_reads"]
    agent.kill()
    agent.start()
    read_all()
    counts = agent.status()["counters"]
    assert (counts["source_reads"], counts["cache_bytes"]) == (0, len(content) + 2 * 65536)
    kept = [path for path in (agent.state / "cache").rglob("*") if path.is_file() and path.name.isdigit()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*kept, agent.state])
    # One that has rotted is not served.
    kept[3].write_bytes(kept[3].read_bytes()[:-1] + b"?")
    read_all()
    assert agent.status()["counters"]["source_reads"] == 1

    small = agents.add("store2", exports=exports(disk), cache_quota="2MiB")
    source = open_source(agents.uri("web01", small), None)
    for _ in range(2):
        for offset in range(0, len(content) - MIB // 2, MIB // 2):
            assert source.read(offset, MIB // 2) == content[offset : offset + MIB // 2]
            assert disk_use(small.state / "cache") <= 2 * MIB
    assert disk_use(small.state / "cache") > MIB
    source.close()


def test_copies_are_listed_and_pinned_by_the_agent(
    agents: Agents, repository: Repository, disk: Path, tmp_path: Path
) -> None:
    agent = agents.add("store1", repositories=repositories(repository))
    environment = {
        "LIVEMOUNT_HOME": str(tmp_path / "home"),
        "LIVEMOUNT_AGENT": f"agent://{agent.address}/main",
        "LIVEMOUNT_AGENT_CERTIFICATES": str(agents.client),
    }

    def say(*words: str) -> str:
        done = CliRunner().invoke(app, words, env=environment)
        assert done.exit_code == 0, done.output
        return done.stdout

    def ask(*words: str) -> Any:
        return json.loads(say(*words, "--output", "json"))

    wanted = ("agent", "certificates", "--server", "store9", "--address", "10.0.0.5")
    assert [(row["kind"], row["renewed"]) for row in ask(*wanted)["certificates"]] == [
        ("client", True),
        ("server", True),
    ]
    assert [row["kind"] for row in ask(*wanted)["certificates"] if row["renewed"]] == []

    (row,) = ask("copies")["copies"]
    assert row["name"] == "web01"
    assert row["source"].startswith(f"agent://{agent.address}/main/{row['id']}/web01/disk0.raw?certificates=")
    source = open_source(row["source"], None)
    assert source.read(0, MIB) == disk.read_bytes()[:MIB]
    (told,) = ask("agent", "status")["agents"].values()
    assert told["open"] == {f"main/{row['id']}/web01/disk0.raw": 1}

    metrics = say("agent", "status", "--metrics").splitlines()
    assert f'livemount_agent_up{{agent="{agent.address}"}} 1' in metrics
    assert f'livemount_agent_connections_total{{agent="{agent.address}"}} 1' in metrics

    # A later copy takes its place, yet it stays: somebody reads it.
    newer = repository.backup(write_disk(tmp_path / "newer.raw", seed=2), "web01")
    kept = {decision.copy.id: decision.kept for decision in repository.forget(Rules(keep_last=1))}
    assert kept == {row["id"]: True, newer.id: True}
    source.close()


def test_all_disks_of_a_copy_are_read_by_the_agent(
    agents: Agents, repository: Repository, disk: Path, tmp_path: Path
) -> None:
    agent = agents.add("store1", repositories=repositories(repository))
    second = write_disk(tmp_path / "data.raw", seed=3)
    made = repository.make([DiskInput(disk), DiskInput(second)], "db").copy
    listed = AgentCopies(AgentUri.parse(agents.uri("main", agent))).find("db")
    assert listed.id == made.id
    for image, uri in zip((disk, second), listed.sources, strict=True):
        source = open_source(uri, None)
        assert source.read(0, source.size) == image.read_bytes()
        source.close()


def test_corrupt_copies_are_told_from_those_that_are_away(agents: Agents, repository: Repository) -> None:
    agent = agents.add("store1", repositories=repositories(repository))
    (copy,) = repository.copies()
    uri = agents.uri(f"main/{copy.id}/web01/disk0.raw", agent)
    for file in (repository.path / "index").iterdir():
        file.chmod(0o600)
        file.write_bytes(b"rubbish" * 100)
    with pytest.raises(CorruptError):
        open_source(uri, None)
    repository.path.rename(repository.path.with_name("away"))
    with pytest.raises((NotFoundError, UnavailableError)):
        open_source(uri, None)
