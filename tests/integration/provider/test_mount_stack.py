"""Mount stacks through the real engine and provider, on the real local cloud."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from infra.api import MountRequest
from livemount.core.errors import ConflictError, LivemountError, NoSpaceError
from livemount.core.machine import Copy, MachineDescription
from livemount.workflow.stack import MountStack, _members, mount_stacks, pulumi_environment
from livemount.workflow.stack_events import StackEvent, StackEventKind
from livemount.workflow.stacks import PulumiStacks
from livemount.workflow.states import MountOrder
from tests.integration.provider.conftest import World

pytestmark = pytest.mark.integration


def order(mount: str = "web01") -> MountRequest:
    machine = MachineDescription(memory_mib=64)
    return MountRequest(mount=mount, source="file:///copy", machine=machine, profile="web01", hold_seconds=60)


def mount_order() -> MountOrder:
    """The order of a mount that comes to the same request."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    copy = Copy(
        id="ab" * 32, name="web01", time=now, size=1 << 30, stored=1 << 20,
        description=order().machine, source=order().source,
    )  # fmt: skip
    return MountOrder(mount="web01", copy=copy, expires=now, hold_seconds=60)


def test_up_and_destroy(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    begin = time.monotonic()
    seen: list[str] = []
    outputs = stack.up(order(), lambda event: seen.append(str(event)))
    print(f"up: {time.monotonic() - begin:.1f} s", seen)
    assert outputs["address"] == "10.77.0.10"
    assert world.host.disks["web01"].request.address == "10.77.0.10"
    assert world.host.disks["web01"].request.hold_seconds == 60
    assert world.cloud.read_machine("web01") is not None
    assert outputs["targetIqn"] == "iqn.x:web01"
    assert stack.outputs() == outputs
    assert mount_stacks(world.paths) == ["web01"]

    begin = time.monotonic()
    assert PulumiStacks(world.settings).up(mount_order()) == outputs
    assert world.host.disks["web01"].request.hold_seconds == 60
    print(f"up again: {time.monotonic() - begin:.1f} s")

    begin = time.monotonic()
    world.cloud.delete_machine("web01", wait=0)  # there is no guest that could power off
    stack.destroy(lambda event: seen.append(str(event)))
    print(f"destroy: {time.monotonic() - begin:.1f} s", seen)
    assert world.cloud.names()["machines"] == []
    assert world.cloud.names()["interfaces"] == []
    assert world.host.disks == {}
    assert mount_stacks(world.paths) == []


def engine_of(stack: MountStack) -> tuple[int, list[int]]:
    """The engine of the operation under way, and all processes of its session."""
    session = json.loads((stack._paths.pulumi / "locks" / "livemount-mount" / stack.name).read_text())["session"]
    members = _members(session)
    engines = [pid for pid in members if Path(f"/proc/{pid}/comm").read_text().strip() == "pulumi"]
    return engines[0], members


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


def up_in_background(world: World, stack: MountStack) -> tuple[threading.Thread, list[LivemountError]]:
    """An `up` that hangs in the middle: the host has made the pseudo-disk and does not answer."""
    errors: list[LivemountError] = []

    def run() -> None:
        try:
            stack.up(order())
        except LivemountError as error:
            errors.append(error)

    world.host.go_on.clear()
    thread = threading.Thread(target=run)
    thread.start()
    assert world.host.entered.wait(60)
    return thread, errors


@pytest.mark.parametrize("who", ["engine", "all"])
def test_destroy_after_the_engine_was_killed_in_the_middle_leaves_nothing(world: World, who: str) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    thread, errors = up_in_background(world, stack)
    engine, members = engine_of(stack)
    for pid in [engine] if who == "engine" else members:
        os.kill(pid, signal.SIGKILL)
    thread.join(60)
    assert errors
    # No plug-in outlives its engine.
    wait_until(lambda: not any(alive(pid) for pid in members), 10)
    world.host.go_on.set()
    assert set(world.host.disks) == {"web01"}
    assert world.cloud.names()["interfaces"] == ["web01"]

    stack.destroy()
    assert world.host.disks == {}
    assert world.cloud.names()["interfaces"] == []
    assert not stack.exists()


def test_up_after_the_engine_was_killed_in_the_middle_goes_on(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    thread, errors = up_in_background(world, stack)
    os.kill(engine_of(stack)[0], signal.SIGKILL)
    thread.join(60)
    assert errors
    world.host.go_on.set()

    seen: list[StackEvent] = []
    outputs = stack.up(order(), seen.append)
    assert [event.resource for event in seen if event.kind is StackEventKind.RECOVERED] == ["pseudo-disk"]
    assert outputs["address"] == "10.77.0.10"
    assert world.cloud.read_machine("web01") is not None
    stack.destroy()
    assert not stack.exists()


def test_what_a_killed_caller_left_running_is_ended_by_the_next_call(world: World, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(order().model_dump_json())
    program = (
        "import sys; from pathlib import Path; from infra.api import MountRequest\n"
        "from livemount.core.settings import Settings; from livemount.workflow.stack import MountStack\n"
        "s = Settings(); MountStack(s.paths(), s, 'web01').up("
        "MountRequest.model_validate_json(Path(sys.argv[1]).read_text()))"
    )
    stack = MountStack(world.paths, world.settings, "web01")
    world.host.go_on.clear()
    environment = {**os.environ, **pulumi_environment(world.paths, world.settings)}
    caller = subprocess.Popen([sys.executable, "-c", program, str(request)], env=environment)
    assert world.host.entered.wait(60)
    _, members = engine_of(stack)

    with pytest.raises(ConflictError, match="another operation"):
        stack.destroy()
    caller.kill()
    caller.wait()
    assert all(alive(pid) for pid in members)

    threading.Timer(1, world.host.go_on.set).start()
    stack.destroy()
    assert not any(alive(pid) for pid in members)
    assert world.host.disks == {}
    assert world.cloud.names()["interfaces"] == []
    assert not stack.exists()


def test_refresh_sees_what_is_gone_and_up_makes_it_again(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    stack.up(order())
    world.cloud.delete_machine("web01", wait=0)
    del world.host.disks["web01"]
    seen: list[StackEvent] = []
    stack.refresh(seen.append)
    types = {entry["type"] for entry in state_of(stack)["resources"]}
    assert "livemount:local:Interface" in types
    assert not types & {"livemount:local:VirtualMachine", "livemount:index:PseudoDisk"}
    stack.up(order())
    assert world.cloud.read_machine("web01") is not None
    assert set(world.host.disks) == {"web01"}
    world.cloud.delete_machine("web01", wait=0)
    stack.destroy()
    assert not stack.exists()


def test_a_host_that_refuses_is_told_in_one_message_and_nothing_is_left(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    world.host.fail = NoSpaceError("no room for the stores of web01", hint="free some")
    with pytest.raises(NoSpaceError, match=r"^no room for the stores of web01 \(free some\)$"):
        stack.up(order())
    assert world.cloud.names()["machines"] == []
    stack.destroy()
    assert world.cloud.names()["interfaces"] == []
    assert not stack.exists()


def test_another_firmware_replaces_disk_and_machine(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    stack.up(order())
    world.cloud.delete_machine("web01", wait=0)
    changed = order().model_copy(update={"source": "file:///other"})
    stack.up(changed)
    assert world.host.disks["web01"].request.source == "file:///other"
    stack.destroy()


def test_the_state_holds_no_secret(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    stack.up(order())
    secrets = [world.host.token, world.paths.passphrase.read_text()]
    text = json.dumps(state_of(stack))
    assert "/token" in text, "the state names the token's file"
    for path in world.paths.pulumi.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret.encode() in content for secret in secrets), path
    world.cloud.delete_machine("web01", wait=0)
    stack.destroy()


def state_of(stack: MountStack) -> dict[str, Any]:
    latest: dict[str, Any] = json.loads(stack._state_file.read_text())["checkpoint"]["latest"]
    return latest


def test_an_interrupted_caller_ends_the_operation_in_order(world: World) -> None:
    stack = MountStack(world.paths, world.settings, "web01")

    def interrupt(event: StackEvent) -> None:
        if event.resource == "pseudo-disk":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stack.up(order(), interrupt)
    # The engine has finished what was under way: it is in the state, and there is no lock.
    assert "livemount:index:PseudoDisk" in {entry["type"] for entry in state_of(stack)["resources"]}
    assert list(world.paths.pulumi.rglob(".pulumi/locks/**/*.json")) == []
    world.cloud.delete_machine("web01", wait=0)
    stack.destroy()
    assert world.host.disks == {}
    assert not stack.exists()
