"""A live mount by the AWS program, to a guest that runs, and down to nothing.

No AWS was asked: real engine, SDK, programs, live-mount host and guest; behind the stand-in provider moto, and QEMU for
what an instance does, on the address of its interface and from the bytes of the published image.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.api import EnvironmentOutputs, MountRequest
from infra.aws.api import TAG, AwsOutputs
from livemount.core.machine import Firmware, MachineDescription
from livemount.core.settings import Settings
from livemount.host.api import EventKind
from livemount.host.client import HostClient
from livemount.image.ebs_snapshot import Publisher
from livemount.local_cloud.cloud import QemuCloud
from livemount.workflow.stack import MountStack
from tests.support.aws import Asker, aws_environment
from tests.support.aws_stand_in import machines
from tests.support.aws_stand_in.provider import install
from tests.support.moto_stand_in import REGION, MotoStandIn
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MotoStandIn]:
    """The server, and the variables that lead to it and to the stand-in."""
    server = MotoStandIn()
    for name, value in aws_environment(server).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(install(tmp_path / "bin")), os.environ["PATH"]]))
    yield server
    server.stop()


def test_a_guest_boots_by_the_aws_program(
    clean_site: Site, moto: MotoStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    site, ask = clean_site, Asker(moto)
    monkeypatch.setenv(machines.FOLDER, str(site.paths.cloud))
    known = EnvironmentOutputs.load(site.paths)
    publisher = Publisher(REGION, {TAG: "aws"})
    snapshot = publisher.publish(known.image, known.image_digest)
    publisher.close()
    ec2 = ask.client("ec2")
    images = {}
    for firmware, mode in (("bios", "legacy-bios"), ("uefi", "uefi")):
        images[Firmware(firmware)] = ask.image()
        ec2.create_tags(Resources=[images[Firmware(firmware)]], Tags=machines.tags(snapshot, mode))
    vpc = ec2.create_vpc(CidrBlock="10.77.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.77.0.128/25")["Subnet"]["SubnetId"]
    group = ec2.create_security_group(GroupName="guests", Description="-", VpcId=vpc)["GroupId"]
    aws = AwsOutputs(
        region=REGION, vpc_id=vpc, guest_subnet_id=subnet, guest_security_group_id=group, images=images,
        tags={TAG: "aws"},
    )  # fmt: skip
    settings = Settings(home=tmp_path / "home", environment="aws", cache=site.settings.cache)
    paths = settings.paths()
    paths.root.mkdir(parents=True)
    outputs = known.model_copy(update={"name": "aws", "cloud": "aws", "cloud_folder": None, "aws": aws})
    paths.outputs.write_text(outputs.model_dump_json())
    before = ask.inventory()
    (copy,) = (one for one in site.ask("copies")["copies"] if one["name"] == "web01")

    stack = MountStack(paths, settings, "aws01")
    request = MountRequest(
        mount="aws01", source=copy["source"], password_file=site.settings.repository_password,
        machine=MachineDescription.model_validate(copy["description"]),
    )  # fmt: skip
    cloud = QemuCloud(site.paths.cloud)
    try:
        made = stack.up(request)
        with HostClient(known.endpoint, known.token_file) as host:
            site.wait_for(
                lambda: any(one.kind is EventKind.GUEST_UP for one in host.events("aws01").events), "guest up", 600
            )
            assert host.get_pseudo_disk("aws01").request.address == made["address"]
            assert [session.address for session in host.get_pseudo_disk("aws01").sessions] == [made["address"]]
        assert made["instanceId"] in cloud.names()["machines"]
    finally:
        stack.destroy()
        for snapshot_file in site.paths.cloud.glob("snap-*.raw"):
            snapshot_file.unlink()
    assert made["instanceId"] not in cloud.names()["machines"]
    assert ask.inventory() == before
    ask.close()
