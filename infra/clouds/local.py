"""The local cloud: namespaces, bridges and QEMU on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pulumi

from infra.api import EnvironmentOutputs, EnvironmentRequest, MountRequest
from infra.clouds.base import Cloud, MountInterface, MountMachine
from infra.resources import HostConfiguration, Interface, MachineImage, Network, VirtualMachine
from livemount.core.errors import CorruptError
from livemount.local_cloud.api import InterfaceKind
from livemount.local_cloud.cloud import QemuCloud

NETWORK = "guests"
HOST = "host"
"""The name of the live-mount host's interface."""


class LocalCloud(Cloud):
    """Everything on this machine; the live-mount host is a namespace of its own."""

    def environment(self, request: EnvironmentRequest, opts: pulumi.ResourceOptions) -> Mapping[str, pulumi.Input[Any]]:
        """Network, host's interface, host's services, machine image."""
        paths = request.paths
        network = Network(
            "network",
            cloud_folder=paths.cloud,
            name=NETWORK,
            namespace=paths.network_namespace,
            cidr=request.cidr,
            records={urlsplit(request.boot_url).hostname or "": request.host_address},
            opts=opts,
        )
        interface = Interface(
            "host-interface",
            cloud_folder=paths.cloud,
            name=HOST,
            network=NETWORK,
            kind=InterfaceKind.HOST.value,
            address=request.host_address,
            namespace=paths.host_namespace,
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[network])),
        )
        host = HostConfiguration(
            "host",
            environment=request.name,
            home=request.home,
            namespace=paths.host_namespace,
            address=interface.output("privateAddress"),
            token_file=paths.api_token,
            guest_tools=request.guest_tools,
            recall_quota=request.recall_quota,
            keep_recall_stores=request.keep_recall_stores,
            variables=request.variables,
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[interface])),
        )
        image = MachineImage(
            "machine-image",
            images_folder=paths.images,
            ipxe_folder=request.ipxe,
            boot_url=request.boot_url,
            opts=opts,
        )
        return {
            "endpoint": host.output("endpoint"),
            "token_file": str(paths.api_token),
            "host_address": interface.output("privateAddress"),
            "network": NETWORK,
            "image": image.output("path"),
            "image_digest": image.output("digest"),
            "cloud_folder": str(paths.cloud),
        }

    def interface(
        self, request: MountRequest, environment: EnvironmentOutputs, opts: pulumi.ResourceOptions
    ) -> MountInterface:
        """A tap with an address of its own."""
        interface = Interface(
            "interface",
            cloud_folder=_folder(environment),
            name=request.mount,
            network=environment.network,
            opts=opts,
        )
        return MountInterface(interface, interface.output("privateAddress"), interface.output("mac"))

    def machine(
        self,
        request: MountRequest,
        environment: EnvironmentOutputs,
        interface: MountInterface,
        opts: pulumi.ResourceOptions,
    ) -> MountMachine:
        """A QEMU process."""
        machine = VirtualMachine(
            "machine",
            cloud_folder=_folder(environment),
            name=request.mount,
            interface=request.mount,
            image=environment.image,
            firmware=request.machine.firmware,
            cpus=request.machine.cpus,
            memory_mib=request.machine.memory_mib,
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[interface.resource])),
        )
        return MountMachine(
            machine, {name: machine.output(name) for name in ("consoleLog", "consoleSocket", "controlSocket")}
        )

    def sweep(self, mount: str, environment: EnvironmentOutputs) -> None:
        """Machine and interface have the mount's name."""
        cloud = QemuCloud(_folder(environment))
        cloud.delete_machine(mount, wait=0)
        cloud.delete_interface(mount)


def _folder(environment: EnvironmentOutputs) -> Path:
    if environment.cloud_folder is None:
        raise CorruptError(f"the environment {environment.name} has no folder", hint="`livemount environment up`")
    return environment.cloud_folder
