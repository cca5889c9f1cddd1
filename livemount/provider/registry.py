"""The resources that the provider knows. A new one is a new file in `resources/` and a line here.

Loaded when first asked for: a mount's engine need not wait for what only an environment needs (Ansible, Packer).
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from livemount.core.errors import UnsupportedError
from livemount.provider.resource import Resource, Values

RESOURCES = {
    "livemount:aws:HostCode": "host_code",
    "livemount:aws:HostSecrets": "host_secrets",
    "livemount:aws:ImageSnapshot": "image_snapshot",
    "livemount:index:EnvironmentFile": "environment_file",
    "livemount:index:HostConfiguration": "host_configuration",
    "livemount:index:MachineImage": "machine_image",
    "livemount:index:PseudoDisk": "pseudo_disk",
    "livemount:local:Interface": "interface",
    "livemount:local:Network": "network",
    "livemount:local:VirtualMachine": "virtual_machine",
}
"""Pulumi's name of each resource, and its module in `livemount.provider.resources` (its class: the last part)."""


@cache
def find(token: str) -> Resource[Any]:
    """The resource of this name. Raises `UnsupportedError`."""
    if token not in RESOURCES:
        raise UnsupportedError(f"there is no resource {token!r}", hint="known are " + ", ".join(sorted(RESOURCES)))
    module = import_module(f"livemount.provider.resources.{RESOURCES[token]}")
    resource: Resource[Any] = getattr(module, token.rpartition(":")[2])()
    return resource


def delete(token: str, inputs: Values) -> None:
    """Delete what a creation that nobody saw the end of may have left. Raises what the resource's deletion raises."""
    resource = find(token)
    resource.delete(resource.parse(inputs), {})
