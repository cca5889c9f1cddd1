"""Whatever is killed or missing at whatever step of a mount: it ends up running, or wholly removed, with a reason."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from livemount.core.run import run
from livemount.core.settings import HostPaths
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]

UP = ("booting", "running")
OVER = ("ended", "failed")


def request(site: Site, name: str, copy: str = "web01") -> None:
    site.run("mount", copy, "--name", name, "--ttl", "10m", "--no-wait")


def assert_up_or_gone(site: Site, name: str) -> str:
    """The mount is up, and the next command removes it; or it is gone already, saying why."""
    mount = site.wait_for_state(name, *UP, *OVER)
    if mount["state"] == "failed":
        assert mount["error"], mount
        assert not mount["left"], mount
    else:
        site.run("unmount", name)
        assert site.mount(name)["state"] == "ended"
    site.assert_nothing_left()
    return str(mount["error"] or "")


def pulumi_pids(site: Site) -> list[int]:
    """The Pulumi engines that work on mounts of this environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if Path(words[0].decode(errors="replace")).name == "pulumi" and str(site.paths.root).encode() in environment:
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("victim", ["target", "boot", "driver", "api", "manager"])
def test_service_killed_while_a_mount_is_made(clean_site: Site, victim: str) -> None:
    site = clean_site
    request(site, "victim")
    site.wait_for_state("victim", "preparing", *UP, *OVER)
    pid = site.service(victim)
    os.kill(pid, signal.SIGKILL)
    site.wait_for_service(victim, pid)
    assert_up_or_gone(site, "victim")


def test_pulumi_killed_while_a_mount_is_made(clean_site: Site) -> None:
    site = clean_site
    request(site, "victim")
    site.wait_for(lambda: pulumi_pids(site), "a Pulumi engine at work")
    for pid in pulumi_pids(site):
        os.kill(pid, signal.SIGKILL)
    assert_up_or_gone(site, "victim")


def test_command_line_killed(clean_site: Site) -> None:
    site = clean_site
    process = site.start("mount", "web01", "--name", "victim", "--ttl", "10m")
    site.wait_for_state("victim", "preparing", *UP)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert site.wait_for_state("victim", *UP, *OVER)["state"] in UP
    site.run("unmount", "victim")


def test_manager_killed_while_a_mount_ends(clean_site: Site) -> None:
    site = clean_site
    request(site, "victim")
    site.wait_for_state("victim", *UP)
    site.run("unmount", "victim", "--no-wait")
    site.wait_for_state("victim", "ending", *OVER)
    pid = site.service("manager")
    os.kill(pid, signal.SIGKILL)
    site.wait_for_service("manager", pid)
    assert site.wait_for_state("victim", *OVER)["state"] == "ended"


def test_virtual_machine_killed(clean_site: Site) -> None:
    site = clean_site
    request(site, "victim")
    site.wait_for_state("victim", *UP)
    found = subprocess.run(
        ["pgrep", "-f", f"qemu-system.*{site.paths.root}"], capture_output=True, text=True, check=True
    )
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    site.run("unmount", "victim")


@contextmanager
def tiny_disk(folder: Path) -> Iterator[None]:
    """A file system of a few MiB over a folder."""
    run("mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", folder)
    try:
        yield
    finally:
        run("umount", folder)


def test_no_space_for_the_private_store(clean_site: Site) -> None:
    site = clean_site
    with tiny_disk(HostPaths(site.paths.host).mounts):
        request(site, "victim")
        ended = site.wait_for_state("victim", *UP, *OVER)
    assert ended["state"] == "failed", ended
    assert not ended["left"]
    error = str(ended["error"])
    site.assert_nothing_left()
    assert "space" in error.lower(), error


def test_copy_that_is_not_there(clean_site: Site) -> None:
    site = clean_site
    said = site.run("mount", "nosuch", code=3)
    assert "nosuch" in said
    assert "web01" in said
    assert site.ask("mounts")["mounts"] == []


def test_copy_that_vanishes(clean_site: Site) -> None:
    site = clean_site
    copy = site.ask("copies", "web01")["copies"][-1]
    snapshot = Path(site.settings.repository_path) / "snapshots" / copy["id"]
    hidden = Path(site.settings.repository_path) / "hidden"
    snapshot.rename(hidden)
    try:
        said = site.run("mount", f"web01@{copy['id'][:8]}", "--name", "victim", code=3)
        assert "web02" in said
    finally:
        hidden.rename(snapshot)


def test_packs_that_vanish(clean_site: Site) -> None:
    site = clean_site
    packs = Path(site.settings.repository_path) / "data"
    hidden = Path(site.settings.repository_path) / "hidden"
    packs.rename(hidden)
    try:
        request(site, "victim")
        error = assert_up_or_gone(site, "victim")
        assert error
    finally:
        hidden.rename(packs)


def test_name_that_is_taken(clean_site: Site) -> None:
    site = clean_site
    request(site, "victim")
    said = site.run("mount", "web01", "--name", "victim", code=4)
    assert "unmount" in said
    site.wait_for_state("victim", *UP)
    site.run("unmount", "victim")
    site.run("unmount", "victim")  # again: nothing to do
    site.run("unmount", "nosuch", code=3)


@pytest.mark.parametrize(
    "words",
    [
        ("mount", "web01", "--ttl", "soon"),
        ("mount", "web01", "--name", "../x"),
        ("mount",),
        ("backup", "/nosuch.raw", "--name", "Web"),
    ],
)
def test_bad_words(clean_site: Site, words: tuple[str, ...]) -> None:
    clean_site.run(*words, code=2)
