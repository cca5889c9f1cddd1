"""The environment: what `pulumi up` makes once, and all mounts use."""

from __future__ import annotations

import pulumi

from infra.api import EnvironmentRequest
from infra.clouds import cloud
from infra.resources import EnvironmentFile

PROJECT = "livemount"
"""The Pulumi project of environments (`Pulumi.yaml`); a stack of it has its environment's name."""


class Environment(pulumi.ComponentResource):
    """Network, live-mount host and machine image, and the file that tells mounts of them."""

    def __init__(self, request: EnvironmentRequest, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__("livemount:infra:Environment", request.name, None, opts)
        made = cloud(request.cloud).environment(request, pulumi.ResourceOptions(parent=self))
        self.values = {"name": request.name, "cloud": request.cloud, "boot_url": request.boot_url, **made}
        EnvironmentFile(
            "outputs", path=request.paths.outputs, values=self.values, opts=pulumi.ResourceOptions(parent=self)
        )
        self.register_outputs(self.values)


def environment_program(request: EnvironmentRequest) -> None:
    """Declare an environment and export all that mounts need."""
    for name, value in Environment(request).values.items():
        pulumi.export(name, value)
