"""Addresses and MACs of interfaces, and the processes that are taken for ours."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import IPv4Address

import pytest

from livemount.core.errors import ConflictError, NoSpaceError, UsageError
from livemount.local_cloud import process
from livemount.local_cloud.accelerator import _runs
from livemount.local_cloud.api import InterfaceKind, InterfaceSpec, NetworkSpec
from livemount.local_cloud.interface import plan
from livemount.local_cloud.network import check, mac_of

NETWORK = NetworkSpec(name="net", namespace="lm-net", records={"boot": "10.77.0.11"})


def test_addresses_are_given_from_the_tenth_up() -> None:
    spec = InterfaceSpec(name="a", network="net")
    first = plan(spec, NETWORK, {"10.77.0.1"})
    assert (first.address, first.device) == ("10.77.0.10", "tap10")
    # 10.77.0.11 is what a name points at.
    assert plan(spec, NETWORK, {"10.77.0.10"}).address == "10.77.0.12"
    everything = {f"10.77.0.{n}" for n in range(10, 255)}
    with pytest.raises(NoSpaceError):
        plan(spec, NETWORK, everything)


def test_addresses_that_are_asked_for() -> None:
    host = InterfaceSpec(name="h", network="net", kind=InterfaceKind.HOST, address="10.77.0.11", namespace="lm-h")
    assert plan(host, NETWORK, set()).device == "veth11"
    with pytest.raises(ConflictError, match="is taken"):
        plan(host, NETWORK, {"10.77.0.11"})
    for address in ("10.77.0.0", "10.77.0.255", "10.78.0.5", "a"):
        with pytest.raises(UsageError):
            plan(host.model_copy(update={"address": address}), NETWORK, set())
    for wrong in (host.model_copy(update={"namespace": None}), InterfaceSpec(name="m", network="net", namespace="x")):
        with pytest.raises(UsageError, match="namespace"):
            plan(wrong, NETWORK, set())


def test_macs_are_local_and_differ_by_network_and_address() -> None:
    other = NETWORK.model_copy(update={"name": "other"})
    hosts = [IPv4Address("10.77.0.10"), IPv4Address("10.77.0.11")]
    macs = {mac_of(network, host) for network in (NETWORK, other) for host in hosts}
    assert len(macs) == 4
    assert all(mac.startswith("02:") for mac in macs)


@pytest.mark.parametrize("cidr", ["10.77.0.1/24", "10.0.0.0/8", "10.77.0.0/30", "fd00::/64", "net"])
def test_networks_that_cannot_be(cidr: str) -> None:
    with pytest.raises(UsageError):
        check(NETWORK.model_copy(update={"cidr": cidr}))


def test_a_process_is_known_by_a_whole_word_and_ends() -> None:
    word = f"guest=/tmp/test-{os.getpid()}"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", word]) as ours:
        assert process.find(process.with_word(word)) == [ours.pid]
        assert process.find(process.with_word(word[:-1])) == []
        assert process.find(process.is_same(ours.pid)) == [ours.pid]
        assert not process.wait(process.with_word(word), 0.05)
        process.end(process.with_word(word))
        # Not yet waited for: a zombie is not alive.
        assert ours.returncode is None
        assert process.find(process.with_word(word)) == []
        assert process.find(process.is_same(ours.pid)) == []
        assert process.command_line(ours.pid) == []


def test_a_pid_that_is_used_again_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as sleeper:
        same = process.is_same(sleeper.pid)
        assert same(sleeper.pid)
        monkeypatch.setattr(process, "_start_time", lambda _: "later")
        assert not same(sleeper.pid)
        sleeper.kill()


def test_the_accelerator_probe_tells_what_works() -> None:
    assert _runs("tcg")
    assert not _runs("hvf")
