"""The local cloud: what it makes works, and goes away."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from livemount.core.errors import ConflictError, LivemountError, NoSpaceError, NotFoundError, UsageError
from livemount.core.machine import Firmware
from livemount.core.run import CommandError, run
from livemount.local_cloud import process
from livemount.local_cloud.api import Interface, InterfaceSpec, Machine, NetworkSpec
from livemount.local_cloud.cloud import QemuCloud
from livemount.local_cloud.console import Console
from livemount.local_cloud.interface import open_tap
from tests.support.suspend import suspend

if TYPE_CHECKING:
    from tests.integration.local_cloud.conftest import Site

pytestmark = pytest.mark.integration


def pid_of(machine: Machine) -> int:
    """The process of a machine."""
    (pid,) = process.find(process.with_word(f"guest={machine.control_socket.parent}"))
    return pid


@contextmanager
def client(site: Site, mac: str) -> Iterator[str]:
    """A namespace whose `eth0` is on the site's bridge and has this MAC."""
    name = site.network.namespace.replace("-net", "-client")
    bridge = site.network.namespace
    run("ip", "netns", "add", name)
    try:
        peer = ["peer", "name", "eth0", "address", mac, "netns", name]
        run("ip", "-n", bridge, "link", "add", "client", "type", "veth", *peer)
        run("ip", "-n", bridge, "link", "set", "client", "master", "br0", "up")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        yield name
    finally:
        run("ip", "-n", bridge, "link", "delete", "client", check=False)
        run("ip", "netns", "delete", name)


def ask_dhcp(folder: Path, namespace: str) -> str:
    """What the DHCP server offers there: address, DNS server, router. `CommandError` when it offers nothing."""
    script = folder / "lease"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "$ip $dns ${router:-none}" || true\n')
    script.chmod(0o755)
    return run(
        *("busybox", "udhcpc", "-f", "-n", "-q", "-t", "3", "-T", "1", "-i", "eth0", "-s", script), namespace=namespace
    ).stdout.strip()


def test_host_reaches_the_bridge_and_names(site: Site) -> None:
    site.cloud.create_network(site.network)
    host = site.cloud.create_interface(site.host)
    assert host.address == "10.77.0.2"
    run("busybox", "ping", "-c", "1", "-W", "5", "10.77.0.1", namespace=site.host_namespace)
    found = run("busybox", "nslookup", "boot.livemount.internal", "10.77.0.1", namespace=site.host_namespace).stdout
    assert "10.77.0.2" in found.split("Name:")[1]
    with pytest.raises(CommandError, match="NXDOMAIN"):
        run("busybox", "nslookup", "other.livemount.internal", "10.77.0.1", namespace=site.host_namespace)
    # Its own loopback is up.
    run("busybox", "ping", "-c", "1", "-W", "5", "127.0.0.1", namespace=site.host_namespace)
    assert run("sysctl", "-n", "net.ipv4.ip_forward", namespace=site.network.namespace).stdout.strip() == "0"
    assert "default" not in run("ip", "-n", site.network.namespace, "route").stdout


def test_dhcp_gives_each_mac_its_address_and_no_other_one(site: Site, tmp_path: Path) -> None:
    site.cloud.create_network(site.network)
    found = [site.cloud.create_interface(InterfaceSpec(name=name, network="net")) for name in ("a", "b")]
    assert [each.address for each in found] == ["10.77.0.10", "10.77.0.11"]
    for interface in found:
        assert int(interface.mac[:2], 16) & 3 == 2, "locally administered, not multicast"
        with client(site, interface.mac) as namespace:
            assert ask_dhcp(tmp_path, namespace) == f"{interface.address} 10.77.0.1 none"
    with client(site, "02:00:00:00:00:01") as namespace, pytest.raises(CommandError):
        ask_dhcp(tmp_path, namespace)


def test_ipxe_is_told_not_to_wait_for_a_proxy_dhcp(site: Site, tmp_path: Path) -> None:
    """Option 176 (a flag) in iPXE's own option 175."""
    site.cloud.create_network(site.network)
    interface = site.cloud.create_interface(InterfaceSpec(name="a", network="net"))
    script = tmp_path / "lease"
    script.write_text('#!/bin/sh\n[ "$1" = bound ] && echo "$opt175" || true\n')
    script.chmod(0o755)
    with client(site, interface.mac) as namespace:
        words = ["busybox", "udhcpc", "-f", "-n", "-q", "-i", "eth0", "-s", str(script), "-O", "175"]
        assert run(*words, namespace=namespace).stdout.startswith("b00101")


def test_the_address_stays_when_the_guest_follows_the_firmware(site: Site, tmp_path: Path) -> None:
    """Both have the same MAC, but send different client identifiers."""
    site.cloud.create_network(site.network)
    interface = site.cloud.create_interface(InterfaceSpec(name="a", network="net"))
    script = tmp_path / "lease"
    with client(site, interface.mac) as namespace:
        assert ask_dhcp(tmp_path, namespace).startswith(interface.address)
        words = ["busybox", "udhcpc", "-f", "-n", "-q", "-i", "eth0", "-s", str(script), "-x", "0x3d:ff00112233"]
        assert run(*words, namespace=namespace).stdout.startswith(interface.address)


@pytest.mark.parametrize("firmware", list(Firmware))
def test_machine_boots_its_image_and_leaves_it_unchanged(site: Site, firmware: Firmware) -> None:
    before = hashlib.sha256(site.machine.image.read_bytes()).hexdigest()
    site.cloud.create_network(site.network)
    site.cloud.create_interface(InterfaceSpec(name="a", network="net"))
    spec = site.machine.model_copy(update={"firmware": firmware, "memory_mib": 128})
    machine = site.cloud.create_machine(spec)
    assert site.cloud.read_machine("web01") == machine
    assert site.cloud.create_machine(spec) == machine
    # UEFI starts no boot sector, but says what it tried: the disk, and nothing from the network.
    said = site.greeting if firmware is Firmware.BIOS else r"(?i)BdsDxe: \w+.*"
    shown = Console(machine.console_socket, machine.console_log).wait_for(said, 60)
    assert "PXE" not in shown
    status = Path(f"/proc/{pid_of(machine)}/status").read_text()
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"):
        assert line in status
    assert "Uid:\t0" not in status
    site.cloud.delete_machine("web01", wait=0.5)
    assert site.cloud.read_machine("web01") is None
    assert not machine.console_log.parent.exists()
    assert hashlib.sha256(site.machine.image.read_bytes()).hexdigest() == before


def test_killed_machine_is_seen_and_can_be_made_again(site: Site) -> None:
    site.make()
    machine = site.cloud.read_machine("web01")
    assert machine is not None
    first = pid_of(machine)
    os.kill(first, signal.SIGKILL)
    assert process.wait(process.with_word(f"guest={machine.control_socket.parent}"), 60)
    assert site.cloud.read_machine("web01") is None
    again = site.cloud.create_machine(site.machine)
    assert pid_of(again) != first
    assert site.cloud.read_machine("web01") == again


def test_machine_that_does_not_answer_is_removed(site: Site) -> None:
    site.make()
    machine = site.cloud.read_machine("web01")
    assert machine is not None
    suspend(pid_of(machine))
    site.cloud.delete_machine("web01", wait=0)
    assert process.find(process.with_word(f"guest={machine.control_socket.parent}")) == []


def test_parts_taken_away_behind_our_back_are_seen_and_repaired(site: Site) -> None:
    site.make()
    net = site.network.namespace
    run("ip", "-n", net, "link", "delete", "tap11")
    assert site.cloud.read_interface("b") is None
    assert site.cloud.create_interface(InterfaceSpec(name="b", network="net")) == site.cloud.read_interface("b")

    run("ip", "-n", site.host_namespace, "address", "flush", "dev", "eth0")
    assert site.cloud.read_interface("host") is None
    site.cloud.create_interface(site.host)
    run("busybox", "ping", "-c", "1", "-W", "5", "10.77.0.1", namespace=site.host_namespace)

    process.end(process.with_word(f"--conf-file={site.root}/networks/net/dnsmasq.conf"))
    assert site.cloud.read_network("net") is None
    site.cloud.create_network(site.network)
    assert site.cloud.read_network("net") == site.network
    assert site.cloud.read_machine("web01") is not None


def test_create_again_is_the_same_and_delete_of_nothing_does_nothing(site: Site) -> None:
    site.make()
    before = [site.cloud.read_interface(name) for name in ("host", "a", "b")]
    site.make()
    assert [site.cloud.read_interface(name) for name in ("host", "a", "b")] == before
    assert site.cloud.names() == {"networks": ["net"], "interfaces": ["a", "b", "host"], "machines": ["web01"]}
    assert site.cloud.leftovers() == []
    site.delete()
    site.delete()
    assert site.cloud.names() == {"networks": [], "interfaces": [], "machines": []}
    assert site.cloud.remains() == []
    assert [path for path in site.root.rglob("*") if not path.is_dir()] == []


def test_conflicts(site: Site) -> None:
    site.make()
    cloud = site.cloud
    with pytest.raises(ConflictError, match="other properties"):
        cloud.create_network(site.network.model_copy(update={"cidr": "10.78.0.0/24"}))
    with pytest.raises(ConflictError, match="exists already"):
        cloud.create_network(NetworkSpec(name="other", namespace=site.network.namespace))
    with pytest.raises(ConflictError, match="still has interfaces: a, b, host"):
        cloud.delete_network("net")
    with pytest.raises(ConflictError, match="other properties"):
        cloud.create_interface(InterfaceSpec(name="a", network="net", address="10.77.0.99"))
    for taken in ("10.77.0.1", "10.77.0.2", "10.77.0.10"):
        with pytest.raises(ConflictError, match=f"{taken} of network net is taken"):
            cloud.create_interface(InterfaceSpec(name="c", network="net", address=taken))
    with pytest.raises(ConflictError, match="exists already"):
        cloud.create_interface(site.host.model_copy(update={"name": "host2", "address": "10.77.0.3"}))
    with pytest.raises(ConflictError, match="used by machine web01"):
        cloud.delete_interface("a")
    with pytest.raises(ConflictError, match="used by machine web01"):
        cloud.create_machine(site.machine.model_copy(update={"name": "web02"}))
    with pytest.raises(ConflictError, match="is a host's"):
        cloud.create_machine(site.machine.model_copy(update={"name": "web02", "interface": "host"}))
    with pytest.raises(ConflictError, match="other properties"):
        cloud.create_machine(site.machine.model_copy(update={"cpus": 2}))
    tap = cloud.read_interface("a")
    assert tap is not None
    with pytest.raises(ConflictError, match="tap cannot be opened"):
        open_tap(tap, site.network)
    assert cloud.names()["machines"] == ["web01"]
    assert cloud.leftovers() == []


def test_errors_leave_nothing(site: Site) -> None:
    cloud = site.cloud
    with pytest.raises(UsageError, match="no IPv4 network"):
        cloud.create_network(site.network.model_copy(update={"cidr": "10.77.0.1/24"}))
    for records in ({"bad\nname": "10.77.0.2"}, {"name": "10.77.0"}):
        with pytest.raises(UsageError, match="cannot be a DNS record"):
            cloud.create_network(site.network.model_copy(update={"records": records}))
    with pytest.raises(LivemountError, match="dnsmasq does not start"):
        cloud.create_network(site.network.model_copy(update={"records": {"a" * 64: "10.77.0.2"}}))
    assert cloud.remains() == []
    cloud.create_network(site.network)
    with pytest.raises(NotFoundError, match="network none does not exist"):
        cloud.create_interface(InterfaceSpec(name="a", network="none"))
    with pytest.raises(UsageError, match="no host address"):
        cloud.create_interface(InterfaceSpec(name="a", network="net", address="10.78.0.9"))
    cloud.create_interface(InterfaceSpec(name="a", network="net"))
    with pytest.raises(NotFoundError, match=r"missing\.raw does not exist"):
        cloud.create_machine(site.machine.model_copy(update={"image": site.root / "missing.raw"}))
    with pytest.raises(LivemountError, match="web01 does not start: qemu-system"):
        cloud.create_machine(site.machine.model_copy(update={"cpus": 100_000}))
    assert cloud.names()["machines"] == []
    assert cloud.leftovers() == []


def test_a_full_network_says_so(site: Site) -> None:
    site.cloud.create_network(site.network.model_copy(update={"cidr": "10.77.0.0/28"}))
    for number in range(10, 15):
        found = site.cloud.create_interface(InterfaceSpec(name=f"a{number}", network="net"))
        assert found.address == f"10.77.0.{number}"
    with pytest.raises(NoSpaceError, match="no free address"):
        site.cloud.create_interface(InterfaceSpec(name="one-more", network="net"))


def test_a_host_with_running_programs_is_not_taken_away(site: Site) -> None:
    site.cloud.create_network(site.network)
    site.cloud.create_interface(site.host)
    with subprocess.Popen(["nsenter", f"--net=/run/netns/{site.host_namespace}", "sleep", "60"]) as sleeper:
        deadline = time.monotonic() + 60
        while Path(f"/proc/{sleeper.pid}/comm").read_text() != "sleep\n":  # it is in the namespace then
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with pytest.raises(ConflictError, match=rf"still run: {sleeper.pid} \(sleep\)"):
            site.cloud.delete_interface("host")
        assert site.cloud.read_interface("host") is not None
        assert any("(sleep)" in line for line in site.cloud.remains())
        sleeper.kill()
    site.cloud.delete_interface("host")


def test_leftovers_are_found_without_records_and_destroyed(site: Site) -> None:
    site.make()
    for path in (site.root / "records").rglob("*.json"):
        path.unlink()
    left = site.cloud.leftovers()
    assert len([line for line in left if line.startswith("namespace ")]) == 2
    assert len([line for line in left if line.startswith("device ")]) == 5
    assert [line for line in left if "qemu-system-x86_64" in line]
    assert [line for line in left if "dnsmasq" in line]
    site.cloud.destroy_all()
    assert site.cloud.remains() == []


def test_other_clouds_are_not_touched(site: Site, tmp_path: Path) -> None:
    site.make()
    other = QemuCloud(tmp_path / "cloud-other")
    assert other.remains() == []
    other.destroy_all()
    assert site.cloud.read_network("net") is not None
    assert site.cloud.read_machine("web01") is not None


def test_interfaces_made_at_once_get_addresses_of_their_own(site: Site) -> None:
    """By two processes of four threads each."""
    site.cloud.create_network(site.network)

    def make(name: str) -> Interface:
        return QemuCloud(site.root).create_interface(InterfaceSpec(name=name, network="net"))

    child = os.fork()
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, [f"{'child' if child == 0 else 'parent'}-{n}" for n in range(8)]))
    if child == 0:
        os._exit(0 if len(made) == 8 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    found = [site.cloud.read_interface(name) for name in site.cloud.names()["interfaces"]]
    assert {each.address for each in found if each is not None} == {f"10.77.0.{n}" for n in range(10, 26)}
