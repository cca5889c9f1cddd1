"""Mount stacks in AWS by the real engine and SDK, on moto behind the stand-in provider: no AWS was asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from infra.api import EnvironmentOutputs, MountRequest
from infra.aws.api import MOUNT_TAG, TAG, AwsOutputs
from infra.policy import violations
from livemount.boot.api import BOOT_URL
from livemount.core.errors import LivemountError, NoSpaceError
from livemount.core.machine import Firmware, MachineDescription
from livemount.core.settings import EnvironmentPaths, Settings
from livemount.workflow.stack import MountStack
from livemount.workflow.stack_events import StackEvent, StackEventKind
from tests.integration.provider.conftest import Host
from tests.support.aws import Asker, aws_environment
from tests.support.aws_stand_in.provider import install
from tests.support.moto_stand_in import REGION, MotoStandIn

pytestmark = pytest.mark.integration


@dataclass
class AwsWorld:
    """An environment whose host is in memory and whose cloud is moto."""

    settings: Settings
    paths: EnvironmentPaths
    host: Host
    ask: Asker
    aws: AwsOutputs
    before: dict[str, list[str]]

    def instances(self) -> list[dict[str, Any]]:
        """Those that run."""
        running = [{"Name": "instance-state-name", "Values": ["running"]}]
        answer = self.ask("ec2", "describe_instances", Filters=running)
        return [one for group in answer["Reservations"] for one in group["Instances"]]


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoStandIn]:
    """A server for this file."""
    server = MotoStandIn()
    yield server
    server.stop()


@pytest.fixture
def world(
    tmp_path: Path, host: tuple[Host, Path, Path], moto: MotoStandIn, monkeypatch: pytest.MonkeyPatch
) -> Iterator[AwsWorld]:
    """An environment that is up, made without Pulumi."""
    in_memory, socket, token_file = host
    for name, value in aws_environment(moto).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(install(tmp_path / "bin")), os.environ["PATH"]]))
    ask = Asker(moto)
    client = ask.client("ec2")
    vpc = client.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    subnet = client.create_subnet(VpcId=vpc, CidrBlock="10.77.0.0/24")["Subnet"]["SubnetId"]
    group = client.create_security_group(GroupName="guests", Description="-", VpcId=vpc)["GroupId"]
    aws = AwsOutputs(
        region=REGION, vpc_id=vpc, guest_subnet_id=subnet, guest_security_group_id=group,
        images={firmware: ask.image() for firmware in Firmware}, spot=True, tags={TAG: "aws", "owner": "backup"},
    )  # fmt: skip
    settings = Settings(home=tmp_path / "home", environment="aws")
    paths = settings.paths()
    paths.root.mkdir(parents=True)
    outputs = EnvironmentOutputs(
        name="aws", cloud="aws", endpoint=f"unix://{socket}", token_file=token_file, host_address="10.77.1.10",
        boot_url=BOOT_URL, network=vpc, image=tmp_path / "image.raw", image_digest="0", aws=aws,
    )  # fmt: skip
    paths.outputs.write_text(outputs.model_dump_json())
    world = AwsWorld(settings, paths, in_memory, ask, aws, ask.inventory())
    yield world
    assert world.instances() == []
    ask.close()


ORDER = MountRequest(
    mount="web01", source="file:///copy",
    machine=MachineDescription(firmware=Firmware.UEFI, cpus=3, memory_mib=20000),
)  # fmt: skip


def test_up_and_destroy(world: AwsWorld) -> None:
    stack = MountStack(world.paths, world.settings, "web01")
    seen: list[StackEvent] = []
    outputs = stack.up(ORDER, seen.append)
    made = [event.resource for event in seen if event.kind is StackEventKind.DONE]
    assert [name for name in made if name in ("interface", "pseudo-disk", "machine")] == [
        "interface", "pseudo-disk", "machine",
    ]  # fmt: skip
    (machine,) = world.instances()
    assert outputs["instanceId"] == machine["InstanceId"]
    assert outputs["address"] == machine["PrivateIpAddress"] == world.host.disks["web01"].request.address
    assert outputs["instanceType"] == machine["InstanceType"] == "r6i.xlarge"
    assert machine["ImageId"] == world.aws.images[Firmware.UEFI]
    assert machine["SubnetId"] == world.aws.guest_subnet_id
    assert [group["GroupId"] for group in machine["NetworkInterfaces"][0]["Groups"]] == [
        world.aws.guest_security_group_id
    ]
    assert not machine.get("PublicIpAddress")
    assert machine["InstanceLifecycle"] == "spot"
    tags = {tag["Key"]: tag["Value"] for tag in machine["Tags"]}
    assert tags == {TAG: "aws", MOUNT_TAG: "web01", "owner": "backup", "Name": "livemount-aws-web01"}
    state = (world.paths.pulumi / "state/.pulumi/stacks/livemount-mount/web01.json").read_text()
    assert violations(_resources(state)) == []

    stack.destroy()
    assert world.host.disks == {}
    assert world.instances() == []
    assert world.ask.inventory() == world.before


def _resources(state: str) -> list[dict[str, Any]]:
    return list(json.loads(state)["checkpoint"]["latest"]["resources"])


def test_a_host_that_refuses_leaves_no_machine_and_no_interface(world: AwsWorld) -> None:
    world.host.fail = NoSpaceError("the private stores are full")
    stack = MountStack(world.paths, world.settings, "web01")
    with pytest.raises(LivemountError, match="the private stores are full"):
        stack.up(ORDER)
    assert world.instances() == []
    stack.destroy()
    assert world.ask.inventory() == world.before


def test_what_no_state_knows_is_swept_by_its_tags(world: AwsWorld) -> None:
    own = [{"Key": TAG, "Value": "aws"}, {"Key": MOUNT_TAG, "Value": "web01"}]
    others = [{"Key": TAG, "Value": "aws"}, {"Key": MOUNT_TAG, "Value": "web02"}]
    kept, ec2 = {}, world.ask.client("ec2")
    for tags in (own, others):
        interface = ec2.create_network_interface(
            SubnetId=world.aws.guest_subnet_id,
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}],
        )["NetworkInterface"]["NetworkInterfaceId"]
        made = ec2.run_instances(
            ImageId=world.aws.images[Firmware.BIOS], InstanceType="t3.micro", MinCount=1, MaxCount=1,
            NetworkInterfaces=[{"NetworkInterfaceId": interface, "DeviceIndex": 0}],
            TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
        )  # fmt: skip
        kept[tags[1]["Value"]] = made["Instances"][0]["InstanceId"]
    MountStack(world.paths, world.settings, "web01").destroy()
    assert [one["InstanceId"] for one in world.instances()] == [kept["web02"]]
    MountStack(world.paths, world.settings, "web02").destroy()
    assert world.ask.inventory() == world.before
