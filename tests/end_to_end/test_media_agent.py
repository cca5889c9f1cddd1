"""A guest boots from a copy that only a media agent can read, in a namespace of its own, and the agent is killed."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.guest import build_guest
from livemount.agent.config import RepositoryConfig
from livemount.configure.agent import AgentLink, AgentSpec, agent_pid, configure_agent, remove_agent
from livemount.core.secrets import write_secret
from livemount.media.certificates import Authority
from livemount.media.repository import Repository
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of the agent: sockets below it have short paths."""
    made = Path(tempfile.mkdtemp(prefix="lma-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def agent(clean_site: Site, folder: Path) -> Iterator[AgentSpec]:
    """An agent in a namespace of its own, with a repository that nobody else knows the password of."""
    disk = build_guest(clean_site.settings.cache / "guests", hostname="web01", cache=clean_site.settings.cache)
    write_secret(folder / "password", "known to the agent only")
    Repository.init(folder / "repository", folder / "password").backup(disk, "web01")
    subnet = f"10.{128 + os.getpid() % 120}.{os.getpid() // 120 % 250}"  # of this process alone
    spec = AgentSpec(
        name=clean_site.paths.name,
        root=folder / "agent",
        listen=f"{subnet}.1:10809",
        certificates=Authority(clean_site.settings.certificates).server("store1", [f"{subnet}.1"]).folder,
        repositories={
            "main": RepositoryConfig(repository=folder / "repository", password_file=folder / "password"),
        },
        namespace=f"lma-{clean_site.paths.name}",
        link=AgentLink(
            device=f"lma{os.getpid() % 1_000_000}", address=f"{subnet}.1/30", machine_address=f"{subnet}.2/30"
        ),
        variables={"PYTHONPATH": str(ROOT)},
    )
    try:
        configure_agent(spec)
        yield spec
    finally:
        remove_agent(spec)


def test_a_guest_boots_from_a_copy_behind_an_agent_that_is_killed(
    clean_site: Site, agent: AgentSpec, folder: Path
) -> None:
    site = clean_site
    site.run("agent", "certificates")
    site.environment["LIVEMOUNT_AGENT"] = f"agent://{agent.listen}/main"
    mounting = site.start("mount", "web01", "--name", "away", "--boot-timeout", "12m")
    try:
        (copy,) = site.ask("copies")["copies"]
        assert copy["source"].startswith(f"agent://{agent.listen}/main/")
        site.wait_for_state("away", "booting", "running")

        def recalled() -> int:
            disk = site.mount("away")["disk"]
            return int(disk["stats"]["recalled_bytes"]) if disk else 0

        # In the middle of the boot: when some more was recalled, twice.
        for step in (20, 20):
            wanted = recalled() + (step << 20)
            site.wait_for(lambda wanted=wanted: recalled() >= wanted, f"{step} MiB more", 300)  # type: ignore[misc]
            assert site.mount("away")["state"] == "booting"
            before = agent_pid(agent)
            assert before is not None
            os.kill(before, signal.SIGKILL)
            site.wait_for(lambda before=before: agent_pid(agent) not in (None, before), "another agent")  # type: ignore[misc]
        assert _holders(folder / "repository") <= _processes_of(agent)
        out, err = mounting.communicate(timeout=800)
        assert mounting.returncode == 0, out + err
        assert "has reached multi-user" in out + err
        guest = site.console("away")
        assert guest.command("hostname", 60).strip() == "web01"
        assert guest.command("cat /sys/class/iscsi_session/*/targetname", 60).strip().endswith(":away")
        assert site.mount("away")["disk"]["stats"]["read_errors"] == 0, _warnings(site)
        (status,) = site.ask("agent", "status")["agents"].values()
        assert list(status["open"]) == [f"main/{copy['id']}/web01/disk0.raw"]
        site.run("unmount", "away")
    finally:
        if mounting.poll() is None:
            mounting.kill()
            mounting.wait()
        del site.environment["LIVEMOUNT_AGENT"]
    site.assert_nothing_left()


def _warnings(site: Site) -> str:
    """What the pseudo-disk's worker said of its source."""
    logs = sorted((site.paths.host / "log").glob("driver.log*"))
    return "\n".join(line for log in logs for line in log.read_text().splitlines() if "recall" in line)[-4000:]


def _holders(repository: Path) -> set[int]:
    """The processes that have a file of the repository open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(link.readlink()).startswith(str(repository)):
                found.add(int(link.parts[2]))
        except OSError:
            continue
    return found


def _processes_of(agent: AgentSpec) -> set[int]:
    mark = f"LIVEMOUNT_SERVICE={agent.root}:agent".encode()
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in environ.read_bytes():
                found.add(int(environ.parts[2]))
        except OSError:
            continue
    return found
