"""`livemount:local:Network`: a network of the local cloud."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from typing_extensions import override

from livemount.local_cloud.api import NetworkSpec
from livemount.local_cloud.cloud import QemuCloud
from livemount.provider.resource import Inputs, Resource, Values


class NetworkInputs(Inputs):
    """See `NetworkSpec`."""

    cloud_folder: Path
    name: str
    namespace: str
    cidr: str = "10.77.0.0/24"
    records: dict[str, str] = Field(default_factory=dict)

    def spec(self) -> NetworkSpec:
        """What the local cloud is asked for."""
        return NetworkSpec(name=self.name, namespace=self.namespace, cidr=self.cidr, records=self.records)


class Network(Resource[NetworkInputs]):
    """A namespace with a bridge, DHCP and DNS."""

    token = "livemount:local:Network"  # noqa: S105
    inputs = NetworkInputs

    @override
    def id(self, inputs: NetworkInputs) -> str:
        """The network's name."""
        return inputs.name

    @override
    def create(self, inputs: NetworkInputs) -> Values:
        """Make it."""
        QemuCloud(inputs.cloud_folder).create_network(inputs.spec())
        return {}

    @override
    def read(self, inputs: NetworkInputs, outputs: Values) -> Values | None:
        """Whether namespace, bridge and DHCP are there."""
        return None if QemuCloud(inputs.cloud_folder).read_network(inputs.name) is None else {}

    @override
    def delete(self, inputs: NetworkInputs, outputs: Values) -> None:
        """Take it away, with the records of interfaces whose devices are gone (a refresh drops them from the state)."""
        cloud = QemuCloud(inputs.cloud_folder)
        for name in cloud.names()["interfaces"]:
            if cloud.read_interface(name) is None:
                cloud.delete_interface(name)
        cloud.delete_network(inputs.name)
