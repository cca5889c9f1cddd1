"""An interface on a network: a tap for a virtual machine, or a veth into a namespace made for a host.

Every step is idempotent and looks first: making again repairs what is missing.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Collection
from ipaddress import AddressValueError, IPv4Address

from livemount.core.errors import ConflictError, NoSpaceError, UsageError
from livemount.local_cloud import namespace, network
from livemount.local_cloud.api import Interface, InterfaceKind, InterfaceSpec, NetworkSpec
from livemount.local_cloud.locks import step

HOST_DEVICE = "eth0"
"""The device in a host's namespace."""
_FIRST = 10
"""Addresses are given from this one up; those below are for whoever asks for them."""
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def plan(spec: InterfaceSpec, on: NetworkSpec, taken: Collection[str]) -> Interface:
    """The interface as it will be, its address allotted.

    Raises `ConflictError` for a taken address, `UsageError` for one that is not of the network, `NoSpaceError` when
    none is left.
    """
    if (spec.namespace is not None) != (spec.kind is InterfaceKind.HOST):
        raise UsageError(f"interface {spec.name}: a namespace is needed for a host's interface, and for no other")
    hosts = list(network.addresses(on).hosts())
    if spec.address is not None:
        try:
            address = IPv4Address(spec.address)
        except AddressValueError as error:
            raise UsageError(f"interface {spec.name}: {spec.address!r} is no IPv4 address") from error
        if address not in hosts:
            raise UsageError(f"interface {spec.name}: {address} is no host address of network {on.name} ({on.cidr})")
        if str(address) in taken:
            raise ConflictError(f"interface {spec.name}: address {address} of network {on.name} is taken")
    else:
        # What a name points at is meant for somebody.
        free = (host for host in hosts[_FIRST - 1 :] if str(host) not in {*taken, *on.records.values()})
        found = next(free, None)
        if found is None:
            raise NoSpaceError(f"interface {spec.name}: network {on.name} ({on.cidr}) has no free address")
        address = found
    number = int(address) - int(network.addresses(on).network_address)
    device = f"tap{number}" if spec.kind is InterfaceKind.MACHINE else f"veth{number}"
    return Interface(spec=spec, address=str(address), mac=network.mac_of(on, address), device=device)


def make(interface: Interface, on: NetworkSpec, mark: str) -> None:
    """Make what is missing of the interface. `mark` is set as its device's alias."""
    spec = interface.spec
    if interface.device not in namespace.devices(on.namespace):
        if spec.namespace is None:
            step("ip", "-n", on.namespace, "tuntap", "add", "dev", interface.device, "mode", "tap", "vnet_hdr")
        else:
            namespace.add(spec.namespace)
            peer = ["peer", "name", HOST_DEVICE, "address", interface.mac, "netns", spec.namespace]
            step("ip", "-n", on.namespace, "link", "add", interface.device, "type", "veth", *peer)
    if spec.namespace is not None:
        inside = ["ip", "-n", spec.namespace]
        step(*inside, "link", "set", HOST_DEVICE, "alias", mark, "up")
        address = f"{interface.address}/{network.addresses(on).prefixlen}"
        step(*inside, "address", "replace", address, "dev", HOST_DEVICE)
    step("ip", "-n", on.namespace, "link", "set", interface.device, "master", network.BRIDGE, "alias", mark, "up")


def is_there(interface: Interface, on: NetworkSpec) -> bool:
    """Whether the device is on the bridge; for a host's, whether its other end has the MAC and the address too."""
    outside = namespace.devices(on.namespace).get(interface.device)
    if outside is None or outside.get("master") != network.BRIDGE:
        return False
    if interface.spec.namespace is None:
        return True
    inside = namespace.devices(interface.spec.namespace).get(HOST_DEVICE, {})
    has = {entry["local"] for entry in inside.get("addr_info", [])}
    return inside.get("address") == interface.mac and interface.address in has


def remove(interface: Interface, on: NetworkSpec) -> None:
    """Take away what is there of the interface, and a host's namespace."""
    if interface.device in namespace.devices(on.namespace):
        step("ip", "-n", on.namespace, "link", "delete", interface.device)
    if interface.spec.namespace is not None:
        namespace.delete(interface.spec.namespace)


def open_tap(interface: Interface, on: NetworkSpec) -> int:
    """Open the tap for a virtual machine and return the descriptor. Raises `ConflictError` while another has it.

    QEMU gets an open descriptor, since its unprivileged user may not open /dev/net/tun.
    """

    def attach() -> int:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", interface.device.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, request)
        except OSError as error:
            os.close(descriptor)
            raise ConflictError(f"interface {interface.spec.name}: its tap cannot be opened: {error}") from error
        return descriptor

    return namespace.call_within(on.namespace, attach)
