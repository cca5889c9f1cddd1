"""What the programs ask of a cloud."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulumi

from infra.api import EnvironmentOutputs, EnvironmentRequest, MountRequest


@dataclass(frozen=True)
class MountInterface:
    """A guest's network interface, made before the machine so that its address is known."""

    resource: pulumi.CustomResource
    address: pulumi.Output[str]
    mac: pulumi.Output[str]


@dataclass(frozen=True)
class MountMachine:
    """A guest's virtual machine."""

    resource: pulumi.Resource
    outputs: Mapping[str, pulumi.Output[Any]]
    """What the stack exports of it, by wire names: where its console is, and the like."""


class Cloud(ABC):
    """One cloud, as one run of a program sees it."""

    @abstractmethod
    def environment(self, request: EnvironmentRequest, opts: pulumi.ResourceOptions) -> Mapping[str, pulumi.Input[Any]]:
        """Make network, live-mount host and machine image; returns the fields of `EnvironmentOutputs`."""

    @abstractmethod
    def interface(
        self, request: MountRequest, environment: EnvironmentOutputs, opts: pulumi.ResourceOptions
    ) -> MountInterface:
        """Make the guest's interface."""

    @abstractmethod
    def machine(
        self,
        request: MountRequest,
        environment: EnvironmentOutputs,
        interface: MountInterface,
        opts: pulumi.ResourceOptions,
    ) -> MountMachine:
        """Make the guest's virtual machine from the fixed machine image."""

    @abstractmethod
    def sweep(self, mount: str, environment: EnvironmentOutputs) -> None:
        """Delete whatever this cloud has of a mount, found by its name and not by a state."""
