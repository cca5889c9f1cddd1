"""Mount stacks through the real engine and provider, on the real local cloud."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from infra.api import MountRequest
from livemount.core.machine import MachineDescription
from livemount.workflow.stack import MountStack, mount_stacks

if TYPE_CHECKING:
    from tests.integration.provider.conftest import World

pytestmark = pytest.mark.integration


def order(mount: str = "web01") -> MountRequest:
    return MountRequest(mount=mount, source="file:///copy", machine=MachineDescription(memory_mib=64))


def test_up_and_destroy(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    begin = time.monotonic()
    seen: list[str] = []
    outputs = stack.up(order(), lambda event: seen.append(str(event)))
    print(f"up: {time.monotonic() - begin:.1f} s", seen)
    assert outputs["address"] == "10.77.0.10"
    assert world.host.disks["web01"].request.address == "10.77.0.10"
    assert world.cloud.read_machine("web01") is not None
    assert outputs["targetIqn"] == "iqn.x:web01"
    assert stack.outputs() == outputs
    assert mount_stacks(world.paths) == ["web01"]

    begin = time.monotonic()
    assert stack.up(order()) == outputs
    print(f"up again: {time.monotonic() - begin:.1f} s")

    begin = time.monotonic()
    stack.destroy(lambda event: seen.append(str(event)))
    print(f"destroy: {time.monotonic() - begin:.1f} s", seen)
    assert world.cloud.names()["machines"] == []
    assert world.cloud.names()["interfaces"] == []
    assert world.host.disks == {}
    assert mount_stacks(world.paths) == []
