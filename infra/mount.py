"""One mount: interface -> pseudo-disk -> virtual machine, and back in reverse."""

from __future__ import annotations

import pulumi

from infra.api import EnvironmentOutputs, MountRequest
from infra.clouds import cloud
from infra.resources import PseudoDisk

PROJECT = "livemount-mount"
"""The Pulumi project of mounts; a stack of it has its mount's name."""


class Mount(pulumi.ComponentResource):
    """A machine that runs from its copy."""

    def __init__(
        self, request: MountRequest, environment: EnvironmentOutputs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        super().__init__("livemount:infra:Mount", request.mount, None, opts)
        own = pulumi.ResourceOptions(parent=self)
        provider = cloud(environment.cloud)
        interface = provider.interface(request, environment, own)
        disk = PseudoDisk(
            "pseudo-disk",
            endpoint=environment.endpoint,
            token_file=environment.token_file,
            ca_file=environment.ca_file,
            mount=request.mount,
            source=request.source,
            disks=request.disks,
            password_file=request.password_file,
            address=interface.address,
            firmware=request.machine.firmware,
            prepare=request.prepare,
            profile=request.profile,
            hold_seconds=request.hold_seconds,
            opts=pulumi.ResourceOptions(parent=self, depends_on=[interface.resource]),
        )
        # The machine is made last and deleted first: a guest never sees its disk vanish.
        machine = provider.machine(
            request, environment, interface, pulumi.ResourceOptions(parent=self, depends_on=[disk])
        )
        self.values = {
            "address": interface.address,
            "mac": interface.mac,
            **{name: disk.output(name) for name in ("portal", "targetIqn", "initiatorIqn", "size", "report")},
            **machine.outputs,
        }
        self.register_outputs(self.values)


def mount_program(request: MountRequest, environment: EnvironmentOutputs) -> None:
    """Declare a mount and export what its user needs."""
    for name, value in Mount(request, environment).values.items():
        pulumi.export(name, value)
