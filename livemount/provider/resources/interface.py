"""`livemount:local:Interface`: an interface on a network of the local cloud."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import override

from livemount.local_cloud.api import Interface as CloudInterface
from livemount.local_cloud.api import InterfaceKind, InterfaceSpec
from livemount.local_cloud.cloud import QemuCloud
from livemount.provider.resource import Inputs, Resource, Values


class InterfaceInputs(Inputs):
    """See `InterfaceSpec`."""

    cloud_folder: Path
    name: str
    network: str
    kind: InterfaceKind = InterfaceKind.MACHINE
    address: str | None = None
    """The address wanted; the one it has is the output `privateAddress`."""
    namespace: str | None = None

    def spec(self) -> InterfaceSpec:
        """What the local cloud is asked for."""
        return InterfaceSpec(
            name=self.name, network=self.network, kind=self.kind, address=self.address, namespace=self.namespace
        )


def _outputs(interface: CloudInterface) -> Values:
    return {"privateAddress": interface.address, "mac": interface.mac, "device": interface.device}


class Interface(Resource[InterfaceInputs]):
    """A tap for a virtual machine, or a veth into a host's namespace."""

    token = "livemount:local:Interface"  # noqa: S105
    inputs = InterfaceInputs

    @override
    def id(self, inputs: InterfaceInputs) -> str:
        """The interface's name."""
        return inputs.name

    @override
    def create(self, inputs: InterfaceInputs) -> Values:
        """Make it."""
        return _outputs(QemuCloud(inputs.cloud_folder).create_interface(inputs.spec()))

    @override
    def read(self, inputs: InterfaceInputs, outputs: Values) -> Values | None:
        """Whether its device is there."""
        interface = QemuCloud(inputs.cloud_folder).read_interface(inputs.name)
        return None if interface is None else _outputs(interface)

    @override
    def delete(self, inputs: InterfaceInputs, outputs: Values) -> None:
        """Take it away."""
        QemuCloud(inputs.cloud_folder).delete_interface(inputs.name)
