"""The resources of the local cloud: networks, interfaces and virtual machines, each with create, read and delete.

Names are unique within a cloud folder. Create is idempotent for an equal spec and a conflict for another one; read
asks the kernel and the processes, not only the record; delete of what is not there does nothing.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pydantic import Field

from livemount.core.machine import NAME_PATTERN, Firmware, Frozen


class NetworkSpec(Frozen):
    """A network: a namespace with a bridge, and DHCP and DNS on it."""

    name: str = Field(pattern=NAME_PATTERN)
    namespace: str = Field(max_length=32)
    cidr: str = "10.77.0.0/24"
    """The network's own address (DHCP, DNS) is the first of it; guests get addresses from the tenth up."""
    records: dict[str, str] = Field(default_factory=dict)
    """DNS names and the addresses they answer with."""


class InterfaceKind(StrEnum):
    """What an interface is for."""

    MACHINE = "machine"
    """A tap for a virtual machine; its address is given by DHCP to its MAC."""
    HOST = "host"
    """A veth into a host's own namespace (made with it); its address is set there."""


class InterfaceSpec(Frozen):
    """An interface on a network, with an address of its own."""

    name: str = Field(pattern=NAME_PATTERN)
    network: str
    kind: InterfaceKind = InterfaceKind.MACHINE
    address: str | None = None
    """`None`: the next free one. A taken one is a `ConflictError`."""
    namespace: str | None = None
    """For a host's interface: the namespace to make."""


class Interface(Frozen):
    """An interface that exists."""

    spec: InterfaceSpec
    address: str
    mac: str
    device: str


class MachineSpec(Frozen):
    """A virtual machine: nothing on its disk but the machine image (kept unchanged: writes go nowhere)."""

    name: str = Field(pattern=NAME_PATTERN)
    interface: str
    image: Path
    firmware: Firmware = Firmware.BIOS
    cpus: int = Field(default=1, ge=1)
    memory_mib: int = Field(default=1024, ge=64)


class Machine(Frozen):
    """A virtual machine whose process lives."""

    spec: MachineSpec
    console_log: Path
    """All the guest wrote to its serial console."""
    console_socket: Path
    """Unix socket: its serial console, read and write."""
    control_socket: Path
    """Unix socket: QMP."""


class LocalCloud(Protocol):
    """The local cloud below one folder (`EnvironmentPaths.cloud`)."""

    def create_network(self, spec: NetworkSpec) -> NetworkSpec:
        """Make the namespace, bridge, DHCP and DNS."""

    def read_network(self, name: str) -> NetworkSpec | None:
        """The network, when namespace, bridge and DHCP/DNS are there."""

    def delete_network(self, name: str) -> None:
        """Take all of it away. `ConflictError` while interfaces are on it."""

    def create_interface(self, spec: InterfaceSpec) -> Interface:
        """Make the interface and reserve its address."""

    def read_interface(self, name: str) -> Interface | None:
        """The interface, when its device is there."""

    def delete_interface(self, name: str) -> None:
        """Take it away (and a host's namespace). `ConflictError` while a virtual machine uses it."""

    def create_machine(self, spec: MachineSpec) -> Machine:
        """Start the virtual machine; returns when QEMU answers on its control socket."""

    def read_machine(self, name: str) -> Machine | None:
        """The machine, when its process lives and answers."""

    def delete_machine(self, name: str) -> None:
        """Ask the guest to power off (ACPI) and wait a while, then end the process; returns when it is gone."""

    def names(self) -> dict[str, list[str]]:
        """All that is recorded here: `networks`, `interfaces`, `machines`."""
