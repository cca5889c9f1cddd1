"""A cloud of its own for each test, and a machine image that says something on the serial console."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from livemount.local_cloud import namespace
from livemount.local_cloud.api import InterfaceKind, InterfaceSpec, MachineSpec, NetworkSpec
from livemount.local_cloud.cloud import QemuCloud

_GREETING = "hello from the boot sector"
# cld; xor ax, ax; mov ds, ax; mov si, 0x7c16; next: lodsb; test al, al; jz end; mov ah, 0x0e; int 0x10; jmp next;
# end: hlt; jmp end
_PRINT = bytes.fromhex("fc31c08ed8be167cac84c07406b40ecd10ebf5f4ebfd")


@dataclass(frozen=True)
class Site:
    """A cloud and what the tests make in it."""

    cloud: QemuCloud
    root: Path
    network: NetworkSpec
    host: InterfaceSpec
    machine: MachineSpec
    greeting: str
    """What the machine shows on its console."""

    def make(self) -> None:
        """Everything: a network, a host, two interfaces `a` and `b`, and a machine on `a`."""
        self.cloud.create_network(self.network)
        self.cloud.create_interface(self.host)
        self.cloud.create_interface(InterfaceSpec(name="a", network="net"))
        self.cloud.create_interface(InterfaceSpec(name="b", network="net"))
        self.cloud.create_machine(self.machine)

    def delete(self) -> None:
        """The same, away."""
        self.cloud.delete_machine(self.machine.name, wait=0)
        for name in ("a", "b", "host"):
            self.cloud.delete_interface(name)
        self.cloud.delete_network("net")

    @property
    def host_namespace(self) -> str:
        assert self.host.namespace is not None
        return self.host.namespace


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A cloud in which nothing is made yet; afterwards nothing of it is there."""
    tag = f"lmt-{secrets.token_hex(3)}"
    image = tmp_path / "machine.raw"
    code = _PRINT + _GREETING.encode() + b"\r\n\0"
    image.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))
    root = tmp_path / "cloud"
    found = Site(
        cloud=QemuCloud(root),
        root=root,
        network=NetworkSpec(name="net", namespace=f"{tag}-net", records={"boot.livemount.internal": "10.77.0.2"}),
        host=InterfaceSpec(
            name="host", network="net", kind=InterfaceKind.HOST, address="10.77.0.2", namespace=f"{tag}-host"
        ),
        machine=MachineSpec(name="web01", interface="a", image=image, memory_mib=64),
        greeting=_GREETING,
    )
    try:
        yield found
    finally:
        found.cloud.destroy_all()
        left = [*found.cloud.remains(), *(name for name in namespace.names() if name.startswith(tag))]
    assert left == []
