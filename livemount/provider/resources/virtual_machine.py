"""`livemount:local:VirtualMachine`: a virtual machine of the local cloud."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import override

from livemount.core.machine import Firmware
from livemount.local_cloud.api import Machine, MachineSpec
from livemount.local_cloud.cloud import QemuCloud
from livemount.provider.resource import Inputs, Resource, Values


class VirtualMachineInputs(Inputs):
    """See `MachineSpec`."""

    cloud_folder: Path
    name: str
    interface: str
    image: Path
    firmware: Firmware = Firmware.BIOS
    cpus: int = 1
    memory_mib: int = 1024

    def spec(self) -> MachineSpec:
        """What the local cloud is asked for."""
        return MachineSpec(
            name=self.name,
            interface=self.interface,
            image=self.image,
            firmware=self.firmware,
            cpus=self.cpus,
            memory_mib=self.memory_mib,
        )


def _outputs(machine: Machine) -> Values:
    return {
        "consoleLog": str(machine.console_log),
        "consoleSocket": str(machine.console_socket),
        "controlSocket": str(machine.control_socket),
    }


class VirtualMachine(Resource[VirtualMachineInputs]):
    """A QEMU process that starts from the machine image."""

    token = "livemount:local:VirtualMachine"  # noqa: S105
    inputs = VirtualMachineInputs

    @override
    def id(self, inputs: VirtualMachineInputs) -> str:
        """The machine's name."""
        return inputs.name

    @override
    def create(self, inputs: VirtualMachineInputs) -> Values:
        """Start it."""
        return _outputs(QemuCloud(inputs.cloud_folder).create_machine(inputs.spec()))

    @override
    def read(self, inputs: VirtualMachineInputs, outputs: Values) -> Values | None:
        """Whether its process lives and answers."""
        machine = QemuCloud(inputs.cloud_folder).read_machine(inputs.name)
        return None if machine is None else _outputs(machine)

    @override
    def delete(self, inputs: VirtualMachineInputs, outputs: Values) -> None:
        """Take it away at once: what a clean power-off would write goes with the private store anyway."""
        QemuCloud(inputs.cloud_folder).delete_machine(inputs.name, wait=0)
