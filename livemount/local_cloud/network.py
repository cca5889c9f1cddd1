"""A network of the local cloud: a namespace with a bridge, and dnsmasq on it as the cloud's DHCP and DNS.

Nothing leads out of the namespace. The MAC of an interface follows from its network and its address. So dnsmasq is
told once which MAC gets which address, and is never reloaded; and a neighbour's ARP entry stays right when an address
goes to the next machine. Every step is idempotent and looks first: making again repairs what is missing.
"""

from __future__ import annotations

import hashlib
import pwd
import re
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from livemount.core.errors import LivemountError, UsageError
from livemount.local_cloud import namespace, process
from livemount.local_cloud.api import NetworkSpec
from livemount.local_cloud.locks import step

BRIDGE = "br0"
_DNS_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_START_SECONDS = 20


def check(spec: NetworkSpec) -> None:
    """Raise `UsageError` for a network that cannot be made."""
    addresses(spec)
    for name, address in spec.records.items():
        try:
            IPv4Address(address)
        except ValueError:
            address = ""
        if not address or not _DNS_NAME.fullmatch(name):
            raise UsageError(f"network {spec.name}: {name!r} with {spec.records[name]!r} cannot be a DNS record")


def addresses(spec: NetworkSpec) -> IPv4Network:
    """The network's addresses. Raises `UsageError` when they are no network of 16 to 1024 addresses."""
    try:
        network = IPv4Network(spec.cidr)
    except ValueError as error:
        raise UsageError(f"network {spec.name}: {spec.cidr!r} is no IPv4 network: {error}") from error
    if not 22 <= network.prefixlen <= 28:
        raise UsageError(f"network {spec.name}: {spec.cidr} must have a prefix of 22 to 28 bits")
    return network


def gateway(spec: NetworkSpec) -> IPv4Address:
    """The network's own address, on its bridge: the first."""
    return addresses(spec)[1]


def mac_of(spec: NetworkSpec, address: IPv4Address) -> str:
    """The MAC of the interface that has this address: locally administered, unique within the network."""
    number = int(address) - int(addresses(spec).network_address)
    octets = b"\x02" + hashlib.sha256(spec.name.encode()).digest()[:3] + number.to_bytes(2, "big")
    return octets.hex(":")


def system_user(*names: str) -> str:
    """The first of these users that this machine has, else `nobody`."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in names if name in known), "nobody")


def _configuration(spec: NetworkSpec, folder: Path) -> str:
    network = addresses(spec)
    own = gateway(spec)
    lines = [
        "keep-in-foreground",
        f"pid-file={folder / 'dnsmasq.pid'}",
        f"user={system_user('dnsmasq')}",
        "log-facility=-",
        "log-dhcp",
        f"interface={BRIDGE}",
        "except-interface=lo",
        "bind-interfaces",
        # DNS: the network's names; every other name is unknown, without asking anybody.
        "no-resolv",
        "no-hosts",
        "local=/#/",
        *(f"host-record={name},{address}" for name, address in sorted(spec.records.items())),
        # DHCP: each MAC its own address, whichever client identifier the firmware and then the guest send. No router
        # is named: what is outside cannot be reached, and is better known as such at once.
        f"dhcp-range={network.network_address},static,{network.netmask},12h",
        "dhcp-authoritative",
        "leasefile-ro",
        "dhcp-option=option:router",
        # iPXE need not wait some seconds for the offers of a proxy DHCP: there is none.
        "dhcp-option=encap:175,176,1b",
        *(f"dhcp-host={mac_of(spec, host)},id:*,{host}" for host in network.hosts() if host != own),
    ]
    return "\n".join(lines) + "\n"


def _service_word(folder: Path) -> str:
    return f"--conf-file={folder / 'dnsmasq.conf'}"


def make(spec: NetworkSpec, folder: Path, mark: str) -> None:
    """Make what is missing of the network. `folder` is for dnsmasq's files; `mark` is set as the bridge's alias."""
    namespace.add(spec.namespace)
    if BRIDGE not in namespace.devices(spec.namespace):
        step("ip", "-n", spec.namespace, "link", "add", BRIDGE, "type", "bridge")
    step("ip", "-n", spec.namespace, "link", "set", BRIDGE, "alias", mark, "up")
    address = f"{gateway(spec)}/{addresses(spec).prefixlen}"
    step("ip", "-n", spec.namespace, "address", "replace", address, "dev", BRIDGE)
    if not _is_served(spec, folder):
        _serve(spec, folder)


def is_there(spec: NetworkSpec, folder: Path) -> bool:
    """Whether namespace, bridge and service are all there."""
    return BRIDGE in namespace.devices(spec.namespace) and _is_served(spec, folder)


def remove(spec: NetworkSpec, folder: Path) -> None:
    """Take away what is there of the network."""
    process.end(process.with_word(_service_word(folder)))
    namespace.delete(spec.namespace)
    for file in folder.iterdir() if folder.exists() else ():
        file.unlink()
    if folder.exists():
        folder.rmdir()


def _is_served(spec: NetworkSpec, folder: Path) -> bool:
    """Whether dnsmasq is ready (it writes its pid file when its sockets are bound), in this very namespace."""
    inode = namespace.inode(spec.namespace)
    running = process.find(process.with_word(_service_word(folder)))
    pid_file = folder / "dnsmasq.pid"
    return (
        inode is not None
        and len(running) == 1
        and process.network(running[0]) == inode
        and pid_file.exists()
        and pid_file.read_text().strip() == str(running[0])
    )


def _serve(spec: NetworkSpec, folder: Path) -> None:
    process.end(process.with_word(_service_word(folder)))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / "dnsmasq.pid").unlink(missing_ok=True)
    (folder / "dnsmasq.conf").write_text(_configuration(spec, folder))
    log = folder / "dnsmasq.log"
    process.start(["dnsmasq", _service_word(folder)], log, namespace=spec.namespace)
    deadline = time.monotonic() + _START_SECONDS
    while not _is_served(spec, folder):
        if not process.find(process.with_word(_service_word(folder))) or time.monotonic() > deadline:
            process.end(process.with_word(_service_word(folder)))
            raise LivemountError(f"dnsmasq does not start for network {spec.name}: {log.read_text()[-500:].strip()}")
        time.sleep(0.02)
