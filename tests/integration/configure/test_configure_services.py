"""The roles with the real services: they run, serve a disk, and leave nothing."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.configure import SERVICES, HostSpec, api, configure, remove, service_pids, wait_ready
from livemount.core.run import run
from livemount.core.secrets import secret_file
from livemount.driver.api import PseudoDiskSpec
from livemount.driver.client import DriverClient
from livemount.target.api import Chap, TargetSpec
from livemount.target.tgt import TgtTarget

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
ADDRESS = "10.77.0.2"


@pytest.fixture
def spec(short_folder: Path) -> Iterator[HostSpec]:
    name = f"s{uuid.uuid4().hex[:6]}"
    namespace = f"lm-{name}-host"
    run("ip", "netns", "add", namespace)
    run("ip", "link", "set", "lo", "up", namespace=namespace)
    run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo", namespace=namespace)
    made = HostSpec(
        environment=name,
        home=short_folder,
        namespace=namespace,
        address=ADDRESS,
        token_file=secret_file(short_folder / name / "secrets" / "api-token"),
        guest_tools=short_folder,
        variables={"PYTHONPATH": str(ROOT)},
    )
    try:
        yield made
    finally:
        remove(made)
        run("ip", "netns", "delete", namespace)


def test_the_real_services_serve_a_disk_and_leave_nothing(spec: HostSpec, tmp_path: Path) -> None:
    configure(spec)
    wait_ready(spec, 60)
    before = service_pids(spec)
    assert set(before) == set(SERVICES)
    assert api._play(spec, "site.yml") == 0
    assert service_pids(spec) == before

    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(1 << 20))
    disk = DriverClient(spec.host.driver_socket).attach(
        PseudoDiskSpec(
            id="m1",
            source=image.as_uri(),
            directory=spec.host.mounts / "m1",
            recall_directory=spec.host.recall,
        )
    )
    assert disk.path.read_bytes() == image.read_bytes()
    target = TgtTarget(spec.host.target_socket)
    target.create(
        TargetSpec(
            mount="m1",
            backing_file=disk.path,
            initiator_address="10.77.0.10",
            chap=Chap(user="m1", secret="s" * 16),
        )
    )
    assert target.mounts() == ["m1"]
    workers = _below(spec.host.root) - set(before.values())
    assert workers

    remove(spec)

    # Their parent has ended too, and process 1 collects them when it gets to it, or never: a zombie has no words.
    deadline = time.monotonic() + 60
    while left := {pid: words for pid in workers | set(before.values()) if (words := _words(pid))}:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not spec.host.root.exists()
    assert str(spec.host.root) not in Path("/proc/self/mountinfo").read_text()


def _words(pid: int) -> str:
    """The command line of a process; empty when there is no such process, or only a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _below(root: Path) -> set[int]:
    """The processes that were started for the services below `root`."""
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"LIVEMOUNT_SERVICE={root}:".encode() in environ.read_bytes():
                found.add(int(environ.parent.name))
        except OSError:
            continue
    return found
