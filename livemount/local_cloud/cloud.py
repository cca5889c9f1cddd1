"""The local cloud: networks, interfaces and virtual machines of one folder, by network namespaces and QEMU.

Any number of processes and threads may call at once. Networks and interfaces are made and removed under one lock, a
machine under one of its own (the network's lock is only taken inside it, for the records). A caller may die anywhere:
a record is written before its thing is made and removed after the thing is gone, every state is found by looking, and
the next create or delete of the name repairs or clears what it finds.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from livemount.core.errors import ConflictError, LivemountError, NotFoundError
from livemount.local_cloud import interface as interfaces
from livemount.local_cloud import machine as machines
from livemount.local_cloud import namespace, network, process
from livemount.local_cloud.api import Interface, InterfaceSpec, Machine, MachineSpec, NetworkSpec
from livemount.local_cloud.locks import locked
from livemount.local_cloud.records import Records
from livemount.local_cloud.survey import Found, survey

POWER_DOWN_SECONDS = 20.0
"""How long a guest may take to power off."""
_LEAVE_SECONDS = 5.0
"""How long processes may take to leave a host's namespace that is to be removed."""


class QemuCloud:
    """The cloud whose state lies below `root`. Implements `livemount.local_cloud.api.LocalCloud`."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        records = self._root / "records"
        self._networks = Records(records / "networks", NetworkSpec)
        self._interfaces = Records(records / "interfaces", Interface)
        self._machines = Records(records / "machines", MachineSpec)
        self._lock = self._root / "cloud.lock"
        self._mark = f"livemount cloud {hashlib.sha256(bytes(self._root)).hexdigest()[:16]}"

    # Networks

    def create_network(self, spec: NetworkSpec) -> NetworkSpec:
        """Make the namespace, bridge, DHCP and DNS."""
        network.check(spec)
        with locked(self._lock):
            found = self._networks.read(spec.name)
            if found is not None and found != spec:
                if network.is_there(found, self._network_folder(spec.name)) or self._on(spec.name):
                    raise ConflictError(f"network {spec.name} exists with other properties")
                self._remove_network(found)
                found = None
            if found is None:
                self._claim(spec.namespace)
                self._networks.write(spec.name, spec)
            try:
                network.make(spec, self._network_folder(spec.name), self._mark)
            except LivemountError:
                if not self._on(spec.name):
                    self._remove_network(spec)
                raise
        return spec

    def read_network(self, name: str) -> NetworkSpec | None:
        """The network, when namespace, bridge and DHCP/DNS are there."""
        spec = self._networks.read(name)
        return spec if spec is not None and network.is_there(spec, self._network_folder(name)) else None

    def delete_network(self, name: str) -> None:
        """Take all of it away. `ConflictError` while interfaces are on it."""
        with locked(self._lock):
            spec = self._networks.read(name)
            if spec is None:
                return
            if on := self._on(name):
                raise ConflictError(f"network {name} still has interfaces: {', '.join(on)}", hint="delete them first")
            self._remove_network(spec)

    def _remove_network(self, spec: NetworkSpec) -> None:
        network.remove(spec, self._network_folder(spec.name))
        self._networks.remove(spec.name)

    def _network_folder(self, name: str) -> Path:
        return self._root / "networks" / name

    def _on(self, name: str) -> list[str]:
        return [each for each, interface in self._interfaces.all().items() if interface.spec.network == name]

    def _claim(self, wanted: str) -> None:
        """Raise `ConflictError` when a namespace that is to be made is somebody's."""
        if wanted in self._namespaces() or namespace.exists(wanted):
            raise ConflictError(
                f"the network namespace {wanted} exists already",
                hint=f"choose another environment name, or, if nothing needs it, `ip netns delete {wanted}`",
            )

    def _namespaces(self) -> set[str]:
        """The namespaces of all that is recorded."""
        of_hosts = (each.spec.namespace for each in self._interfaces.all().values() if each.spec.namespace)
        return {*(each.namespace for each in self._networks.all().values()), *of_hosts}

    # Interfaces

    def create_interface(self, spec: InterfaceSpec) -> Interface:
        """Make the interface and reserve its address."""
        with locked(self._lock):
            on = self._network(spec.network)
            found = self._interfaces.read(spec.name)
            if found is not None and found.spec != spec:
                if interfaces.is_there(found, self._network(found.spec.network)) or self._using(spec.name):
                    raise ConflictError(f"interface {spec.name} exists with other properties")
                self._remove_interface(found)
                found = None
            if found is None:
                if spec.namespace is not None:
                    self._claim(spec.namespace)
                found = interfaces.plan(spec, on, self._taken(spec.network))
                self._interfaces.write(spec.name, found)
            try:
                interfaces.make(found, on, self._mark)
            except LivemountError:
                if not self._using(spec.name):
                    self._remove_interface(found)
                raise
        return found

    def read_interface(self, name: str) -> Interface | None:
        """The interface, when its device is there."""
        found = self._interfaces.read(name)
        on = self._networks.read(found.spec.network) if found is not None else None
        return found if found is not None and on is not None and interfaces.is_there(found, on) else None

    def delete_interface(self, name: str) -> None:
        """Take it away (and a host's namespace).

        `ConflictError` while a virtual machine uses it, or while processes run in a host's namespace: they would go on
        unseen.
        """
        with locked(self._lock):
            found = self._interfaces.read(name)
            if found is None:
                return
            if using := self._using(name):
                raise ConflictError(f"interface {name} is used by machine {using}", hint="delete the machine first")
            inode = namespace.inode(found.spec.namespace) if found.spec.namespace is not None else None
            if inode is not None and not process.wait(process.in_network(inode), _LEAVE_SECONDS):
                running = ", ".join(process.describe(pid) for pid in process.find(process.in_network(inode)))
                raise ConflictError(f"in namespace {found.spec.namespace} still run: {running}", hint="stop them first")
            self._remove_interface(found)

    def _remove_interface(self, found: Interface) -> None:
        interfaces.remove(found, self._network(found.spec.network))
        self._interfaces.remove(found.spec.name)

    def _network(self, name: str) -> NetworkSpec:
        found = self._networks.read(name)
        if found is None:
            raise NotFoundError(f"network {name} does not exist")
        return found

    def _taken(self, name: str) -> set[str]:
        of_others = (each.address for each in self._interfaces.all().values() if each.spec.network == name)
        return {str(network.gateway(self._network(name))), *of_others}

    def _using(self, name: str) -> str | None:
        """The machine that is recorded on this interface."""
        return next((each for each, spec in self._machines.all().items() if spec.interface == name), None)

    # Machines

    def create_machine(self, spec: MachineSpec) -> Machine:
        """Start the virtual machine; returns when QEMU answers on its control socket."""
        folder = self._machine_folder(spec.name)
        with locked(self._machine_lock(spec.name)):
            found = self._machines.read(spec.name)
            if found is not None and machines.is_alive(folder):
                if found != spec:
                    raise ConflictError(f"machine {spec.name} exists with other properties")
                return machines.describe(spec, folder)
            self._remove_machine(spec.name, 0)
            with locked(self._lock):
                device = self._interfaces.read(spec.interface)
                if device is None:
                    raise NotFoundError(f"machine {spec.name}: interface {spec.interface} does not exist")
                if device.spec.namespace is not None:
                    raise ConflictError(f"machine {spec.name}: interface {spec.interface} is a host's")
                if using := self._using(spec.interface):
                    raise ConflictError(f"interface {spec.interface} is used by machine {using}")
                self._machines.write(spec.name, spec)
            try:
                machines.start(spec, folder, device, self._network(device.spec.network))
            except LivemountError:
                self._remove_machine(spec.name, 0)
                raise
        return machines.describe(spec, folder)

    def read_machine(self, name: str) -> Machine | None:
        """The machine, when its process lives and answers."""
        spec = self._machines.read(name)
        folder = self._machine_folder(name)
        return machines.describe(spec, folder) if spec is not None and machines.is_alive(folder) else None

    def delete_machine(self, name: str, wait: float = POWER_DOWN_SECONDS) -> None:
        """Ask the guest to power off (ACPI), wait up to `wait` seconds, then end the process; returns when it is gone.

        A `wait` of 0 does not ask.
        """
        with locked(self._machine_lock(name)):
            self._remove_machine(name, wait)

    def _remove_machine(self, name: str, wait: float) -> None:
        machines.stop(self._machine_folder(name), wait)
        self._machines.remove(name)

    def _machine_folder(self, name: str) -> Path:
        return self._root / "machines" / name

    def _machine_lock(self, name: str) -> Path:
        return self._root / f"machine-{name}.lock"

    # The whole

    def names(self) -> dict[str, list[str]]:
        """All that is recorded here: `networks`, `interfaces`, `machines`."""
        return {
            "networks": self._networks.names(),
            "interfaces": self._interfaces.names(),
            "machines": self._machines.names(),
        }

    def leftovers(self) -> list[str]:
        """What exists of this cloud although no record names it, one line each: always nothing, or there is a bug."""
        found = self._survey()
        recorded = self._namespaces()
        folders = {*(f"networks/{name}" for name in self._networks.names())}
        folders |= {*(f"machines/{name}" for name in self._machines.names())}
        devices = {(each.namespace, network.BRIDGE) for each in self._networks.all().values()}
        for each in self._interfaces.all().values():
            devices.add((self._network(each.spec.network).namespace, each.device))
            devices.add((each.spec.namespace or "", interfaces.HOST_DEVICE))
        return _lines(
            Found(
                [each for each in found.namespaces if each not in recorded],
                [each for each in found.devices if each not in devices],
                {pid: of for pid, of in found.processes.items() if of not in folders | recorded},
            )
        )

    def remains(self) -> list[str]:
        """All that there is of this cloud, recorded or not, one line each."""
        records = [f"record of {kind[:-1]} {name}" for kind, names in self.names().items() for name in names]
        return records + _lines(self._survey())

    def _survey(self) -> Found:
        return survey(self._root, self._mark, self._namespaces())

    def destroy_all(self) -> None:
        """Take away everything, without asking any guest: machines, interfaces, networks, and what no record names.

        Whatever runs in the cloud's namespaces is ended.
        """
        for name in self._machines.names():
            self.delete_machine(name, wait=0)
        found = self._survey()
        for pid in found.processes:
            process.end(process.is_same(pid))
        for name in self._interfaces.names():
            self.delete_interface(name)
        for name in self._networks.names():
            self.delete_network(name)
        for each in found.namespaces:
            namespace.delete(each)


def _lines(found: Found) -> list[str]:
    return [
        *(f"namespace {each}" for each in found.namespaces),
        *(f"device {device} in namespace {each}" for each, device in found.devices),
        *(f"process {process.describe(pid)} of {of}" for pid, of in found.processes.items()),
    ]
