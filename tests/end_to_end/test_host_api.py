"""The LM host's service with its real parts: who may ask, what is refused, what is repaired; no virtual machine."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo.leftovers import workers
from livemount.core.errors import ConflictError, DeniedError, ExitCode, NotFoundError, UnsupportedError, UsageError
from livemount.core.machine import Firmware
from livemount.core.run import in_namespace, run
from livemount.core.secrets import read_secret, write_secret
from livemount.core.settings import HostPaths
from livemount.host.api import EventKind, PseudoDiskRequest
from livemount.host.client import HostClient
from livemount.media.repository import Repository
from livemount.target.api import initiator_iqn, target_iqn
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(600)]

ADDRESS = "10.77.0.200"


@pytest.fixture
def host(clean_site: Site) -> Iterator[HostClient]:
    """A client of the site's host; what a test made on it is deleted."""
    with HostClient(endpoint(clean_site), clean_site.paths.api_token) as client:
        yield client
        for disk in client.list_pseudo_disks():
            client.delete_pseudo_disk(disk.mount)


def endpoint(site: Site) -> str:
    return f"unix://{HostPaths(site.paths.host).api_socket}"


def a_request(site: Site, address: str = ADDRESS) -> PseudoDiskRequest:
    repository = Repository.open(site.settings.repository_path, site.settings.repository_password)
    return PseudoDiskRequest(
        source=repository.find("web01").source,
        password_file=site.settings.repository_password,
        address=address,
        firmware=Firmware.BIOS,
    )


def events(host: HostClient, mount: str) -> list[EventKind]:
    return [event.kind for event in host.events(mount).events]


def test_a_mounted_copy_is_pinned(clean_site: Site, host: HostClient) -> None:
    """So that it is not forgotten; see tests/unit/media/test_media_retention.py for what a pin does."""
    repository = Repository.open(clean_site.settings.repository_path, clean_site.settings.repository_password)
    host.put_pseudo_disk("one", a_request(clean_site))
    [[pin]] = repository.pins.all().values()
    assert pin.snapshot == repository.find("web01").id
    assert pin.reason.startswith("the mount one on ")
    host.delete_pseudo_disk("one")
    assert repository.pins.all() == {}


def test_all_disks_of_a_copy_are_exported_and_gone_with_it(clean_site: Site, host: HostClient) -> None:
    """Of which the second is the one that is prepared and booted."""
    repository = Repository.open(clean_site.settings.repository_path, clean_site.settings.repository_password)
    copy = repository.find("web02")
    given = a_request(clean_site).model_copy(update={"source": copy.source, "disks": tuple(copy.sources)})
    disk = host.put_pseudo_disk("one", given)
    assert disk.healthy
    assert disk.report is not None
    assert [(each.lun, each.source, each.stats.size) for each in disk.disks] == [
        (1, copy.sources[0], copy.disks[0].size),
        (2, copy.sources[1], copy.disks[1].size),
    ]
    assert disk.disks[1].stats.private_bytes > disk.disks[0].stats.private_bytes == 0
    assert disk.size == copy.disks[1].size
    assert host.put_pseudo_disk("one", given).target_iqn == disk.target_iqn
    script = (HostPaths(clean_site.paths.host).scripts / f"{ADDRESS}.ipxe").read_text()
    assert f":::2:{disk.target_iqn} " in script
    [[*pins]] = repository.pins.all().values()
    assert len(pins) == 2
    host.delete_pseudo_disk("one")
    assert repository.pins.all() == {}
    with pytest.raises(UsageError, match="not one of the disks"):
        host.put_pseudo_disk("two", given.model_copy(update={"source": "file:///other"}))


def test_put_twice_is_one_mount(clean_site: Site, host: HostClient) -> None:
    request = a_request(clean_site)
    disk = host.put_pseudo_disk("one", request)
    assert disk.healthy
    assert disk.report is not None
    assert disk.report.system.startswith("Debian")
    before = events(host, "one")
    again = host.put_pseudo_disk("one", request)
    assert again.target_iqn == disk.target_iqn
    assert events(host, "one") == before
    assert EventKind.GUEST_PREPARED in before


def test_what_is_refused_changes_nothing(clean_site: Site, host: HostClient, tmp_path: Path) -> None:
    request = a_request(clean_site)
    host.put_pseudo_disk("one", request)
    with pytest.raises(ConflictError, match="another request"):
        host.put_pseudo_disk("one", request.model_copy(update={"firmware": Firmware.UEFI}))
    with pytest.raises(ConflictError, match="taken by the mount one"):
        host.put_pseudo_disk("two", request)
    with pytest.raises(UsageError):
        host.put_pseudo_disk("a.b", request)
    with pytest.raises(UsageError):
        host.put_pseudo_disk("Bad_Name", request)
    with pytest.raises(NotFoundError):
        host.get_pseudo_disk("two")
    other = request.model_copy(update={"address": "10.77.0.201"})
    with pytest.raises(NotFoundError):
        host.put_pseudo_disk("three", other.model_copy(update={"source": "file:///no.raw", "password_file": None}))
    wrong = tmp_path / "wrong"
    write_secret(wrong, "wrong")
    with pytest.raises(DeniedError):
        host.put_pseudo_disk("three", other.model_copy(update={"password_file": wrong}))
    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(8 << 20)
    with pytest.raises(UnsupportedError):
        host.put_pseudo_disk("three", other.model_copy(update={"source": f"file://{empty}", "password_file": None}))
    assert [disk.mount for disk in host.list_pseudo_disks()] == ["one"]
    folder = HostPaths(clean_site.paths.host).mounts
    assert [entry.name for entry in folder.iterdir()] == ["one"]
    host.delete_pseudo_disk("one")
    host.delete_pseudo_disk("one")


def test_the_token_is_needed(clean_site: Site, tmp_path: Path) -> None:
    wrong = tmp_path / "token"
    write_secret(wrong, "wrong")
    with HostClient(endpoint(clean_site), wrong) as client:
        assert client.health().ok
        with pytest.raises(DeniedError):
            client.list_pseudo_disks()
    socket = HostPaths(clean_site.paths.host).api_socket
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://host") as bare:
        for method, path in (("GET", "/v1/pseudo-disks"), ("DELETE", "/v1/pseudo-disks/one")):
            assert bare.request(method, path).status_code == 401
        assert set(bare.get("/openapi.json").json()["paths"]) >= {"/v1/pseudo-disks/{mount}", "/v1/health"}


def test_no_secret_shows(clean_site: Site, host: HostClient) -> None:
    host.put_pseudo_disk("one", a_request(clean_site))
    paths = HostPaths(clean_site.paths.host)
    secrets = [
        read_secret(paths.mounts / "one" / "chap").encode(),
        read_secret(clean_site.paths.api_token).encode(),
        read_secret(clean_site.settings.repository_password).encode(),
    ]
    for log in paths.log.rglob("*"):
        if log.is_file():
            assert not any(secret in log.read_bytes() for secret in secrets), log
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes()
        except OSError:
            continue
        assert not any(secret in words for secret in secrets), words


def test_a_killed_target_is_brought_back(clean_site: Site, host: HostClient) -> None:
    host.put_pseudo_disk("one", a_request(clean_site))
    pid = clean_site.service("target")
    os.kill(pid, signal.SIGKILL)
    clean_site.wait_for(lambda: EventKind.REPAIRED in events(host, "one"), "the target to be repaired")
    assert host.get_pseudo_disk("one").healthy


def test_only_the_mounts_address_gets_in(clean_site: Site, host: HostClient) -> None:
    """From the bridge's own address, which is no guest's: no script, and a login with everything right is closed."""
    host.put_pseudo_disk("one", a_request(clean_site))
    namespace = clean_site.paths.network_namespace
    asked = run("curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://10.77.0.2/boot", namespace=namespace)
    assert asked.stdout == "404"
    secret = read_secret(HostPaths(clean_site.paths.host).mounts / "one" / "chap")
    url = f"iscsi://one%{secret}@10.77.0.2:3260/{target_iqn('one')}/1"
    stays = [*in_namespace(namespace), "iscsi-perf", "-i", initiator_iqn("one"), url]
    stranger = subprocess.Popen(stays, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        clean_site.wait_for(lambda: EventKind.STRANGER in events(host, "one"), "the stranger to be shut out")
    finally:
        stranger.kill()
        stranger.wait()


def test_an_inspection_says_what_a_mount_would_do(clean_site: Site, host: HostClient, tmp_path: Path) -> None:
    """Of all disks of a copy, without an address, and with nothing left of it but what was recalled."""
    host.put_pseudo_disk("one", a_request(clean_site))
    said = clean_site.ask("inspect", "web02")
    assert (said["bootable"], said["firmware"]) == (True, "uefi")
    report = said["report"]
    assert report["system"].startswith("Debian")
    assert (report["initrd"], report["kernels"] != []) == ("initramfs-tools", True)
    edits = {edit["path"]: edit for edit in report["edits"]}
    (initrd,) = [path for path in edits if path.startswith("/boot/initrd.img-")]
    assert edits[initrd]["after"] > edits[initrd]["before"] > 0
    assert "+ExecStop=" in edits["/etc/systemd/system/networking.service.d/livemount.conf"]["diff"]
    assert 0 < said["recalled"] < said["size"] / 5
    shown = clean_site.run("mount", "web01", "--dry-run")
    assert "boots under BIOS" in shown
    assert initrd in shown

    empty = tmp_path / "empty.raw"
    with empty.open("wb") as file:
        file.truncate(8 << 20)
    shown = clean_site.run("inspect", "--source", f"file://{empty}", code=ExitCode.UNSUPPORTED)
    assert "does not boot: " in shown
    assert "no partition table" in shown
    clean_site.run("inspect", "--source", f"file://{empty}x", code=ExitCode.NOT_FOUND)
    nothing_but(clean_site, host, "one")


def test_an_inspection_that_was_killed_is_taken_away(clean_site: Site, host: HostClient) -> None:
    host.put_pseudo_disk("one", a_request(clean_site))
    folder = HostPaths(clean_site.paths.host).mounts
    inspection = clean_site.start("inspect", "web02")
    clean_site.wait_for(lambda: len(workers(clean_site.paths)) > 1, "the inspection's pseudo-disk")
    assert len(list(folder.iterdir())) == 2
    assert len(host.list_pseudo_disks()) == 1
    pid = clean_site.service("api")
    os.kill(pid, signal.SIGKILL)
    inspection.communicate(timeout=120)
    assert inspection.returncode == ExitCode.UNAVAILABLE
    clean_site.wait_for_service("api", pid)
    clean_site.wait_for(lambda: len(list(folder.iterdir())) == 1, "the inspection to be taken away")
    nothing_but(clean_site, host, "one")


def nothing_but(site: Site, host: HostClient, mount: str) -> None:
    """No record, worker, pin or export but a mount's."""
    assert [disk.mount for disk in host.list_pseudo_disks()] == [mount]
    assert [entry.name for entry in HostPaths(site.paths.host).mounts.iterdir()] == [mount]
    assert len(workers(site.paths)) == 1
    repository = Repository.open(site.settings.repository_path, site.settings.repository_password)
    assert len([pin for pins in repository.pins.all().values() for pin in pins]) == 1
