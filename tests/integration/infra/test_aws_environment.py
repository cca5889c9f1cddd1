"""An environment in AWS by the real engine and SDK, on moto behind the stand-in provider: no AWS was asked."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

import livemount
from infra.api import EnvironmentOutputs
from infra.aws.api import AwsRequest
from infra.aws.permissions import host_policy
from infra.policy import violations
from livemount.core.machine import Firmware
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.media import open_source
from livemount.workflow.stack import prepare, pulumi_environment
from tests.support.aws import Asker, aws_environment
from tests.support.aws_stand_in.provider import install
from tests.support.moto_stand_in import REGION, MotoStandIn

PROJECT = Path(livemount.__file__).parents[1]
CLIENTS = "10.9.0.0/16"
SETTINGS = {"awsClientCidrs": [CLIENTS], "awsTags": ["owner=backup"], "awsSourceBuckets": ["copies"]}

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@dataclass
class Environment:
    """A stack of the project's own program, by the command line of Pulumi."""

    settings: Settings
    moto: MotoStandIn
    ask: Asker
    variables: dict[str, str]
    folder: Path
    """With the project's Pulumi.yaml, so that the stack's settings lie there."""
    image: str
    before: dict[str, list[str]] = field(default_factory=dict)
    """What moto had before."""

    def pulumi(self, *words: str, check: bool = True) -> str:
        """What `pulumi` prints."""
        done = run("pulumi", *words, env=self.variables, cwd=self.folder, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def configure(self, **settings: Any) -> None:
        """Write the stack's settings."""
        known = {"cloud": "aws", "awsRegion": REGION, "awsHostImage": self.image, **settings}
        file = self.folder / "Pulumi.aws.yaml"
        written = yaml.safe_load(file.read_text()) if file.exists() else {}
        written["config"] = {f"livemount:{key}": item for key, item in known.items()}
        file.write_text(yaml.safe_dump(written))

    def preview(self) -> list[dict[str, Any]]:
        """The steps of a preview."""
        return list(json.loads(self.pulumi("preview", "--json"))["steps"])

    def outputs(self) -> EnvironmentOutputs:
        """What mounts are told."""
        return EnvironmentOutputs.load(self.settings.paths())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """One that is not up yet."""
    folder = tmp_path_factory.mktemp("aws")
    settings = Settings(home=folder, environment="aws")
    prepare(settings.paths())
    moto = MotoStandIn()
    ask = Asker(moto)
    try:
        variables = {**os.environ, **pulumi_environment(settings.paths(), settings), **aws_environment(moto)}
        variables["PATH"] = os.pathsep.join([str(install(folder / "bin")), variables["PATH"]])
        image = ask.image()
        made = Environment(settings, moto, ask, variables, folder, image, ask.inventory())
        project = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())
        (folder / "Pulumi.yaml").write_text(yaml.safe_dump({**project, "main": str(PROJECT / project["main"])}))
        made.pulumi("stack", "init", "aws")
        yield made
    finally:
        ask.close()
        moto.stop()


@pytest.fixture(scope="module")
def up(stack: Environment) -> Iterator[Environment]:
    """One that is up, and down to nothing afterwards."""
    stack.configure(**SETTINGS)
    stack.pulumi("up", "--yes", "--skip-preview")
    yield stack
    stack.pulumi("destroy", "--yes", "--skip-preview")
    assert stack.ask.inventory() == stack.before
    assert not stack.settings.paths().outputs.exists()
    assert not stack.settings.paths().api_token.exists()


def test_settings_that_open_it_to_the_public_are_refused(stack: Environment) -> None:
    stack.configure(awsClientCidrs=["0.0.0.0/0"])
    said = stack.pulumi("preview", check=False)
    assert "aws.client_cidrs: Value error, 0.0.0.0/0 is not private" in said
    assert "Traceback" not in said


def test_an_existing_network_is_used_as_it_is(stack: Environment) -> None:
    network = {"awsVpcId": "vpc-0123456789", "awsHostSubnetId": "subnet-0123456789"}
    stack.configure(**network, awsGuestSubnetId="subnet-abcdef0123")
    states = {step["urn"].split("::")[-1]: step["newState"] for step in stack.preview()}
    assert states["hosts"]["inputs"]["vpcId"] == "vpc-0123456789"
    assert states["host-interface"]["inputs"]["subnetId"] == "subnet-0123456789"
    assert not {"vpc", "nat", "internet", "hosts-routes"} & set(states)


def test_the_same_again_changes_nothing(up: Environment) -> None:
    assert {step["op"] for step in up.preview()} == {"same"}


def test_it_is_encrypted_tagged_and_closed(up: Environment) -> None:
    exported = json.loads(up.pulumi("stack", "export"))["deployment"]["resources"]
    assert violations(exported) == []
    assert len([one for one in exported if one["type"].startswith("aws:")]) > 30
    for service, operation, name in (
        ("ec2", "describe_vpcs", "Vpcs"),
        ("ec2", "describe_volumes", "Volumes"),
        ("ec2", "describe_network_interfaces", "NetworkInterfaces"),
    ):
        wanted = [{"Name": "tag:livemount:environment", "Values": ["aws"]}]
        found = up.ask(service, operation, Filters=wanted)[name]
        assert found
        assert all({"Key": "owner", "Value": "backup"} in (one.get("Tags") or one["TagSet"]) for one in found), name


def test_guests_reach_the_host_only(up: Environment) -> None:
    aws = up.outputs().aws
    assert aws is not None
    groups = {
        one["GroupName"]: one
        for one in up.ask("ec2", "describe_security_groups", Filters=[{"Name": "vpc-id", "Values": [aws.vpc_id]}])[
            "SecurityGroups"
        ]
    }
    guests, hosts = groups["livemount-aws-guests"], groups["livemount-aws-hosts"]
    assert guests["GroupId"] == aws.guest_security_group_id
    assert rules(guests["IpPermissions"]) == set()
    assert rules(guests["IpPermissionsEgress"]) == {(3260, hosts["GroupId"]), (80, hosts["GroupId"])}
    assert rules(hosts["IpPermissions"]) == {(3260, guests["GroupId"]), (80, guests["GroupId"]), (8443, CLIENTS)}
    assert rules(hosts["IpPermissionsEgress"]) == {(443, "0.0.0.0/0"), (80, "0.0.0.0/0")}
    wanted = [{"Name": "association.subnet-id", "Values": [aws.guest_subnet_id]}]
    table = up.ask("ec2", "describe_route_tables", Filters=wanted)["RouteTables"][0]
    assert [route["GatewayId"] for route in table["Routes"]] == ["local"]


def rules(permissions: list[dict[str, Any]]) -> set[tuple[int, str]]:
    """Port, and the network or group, of each rule; all are of one TCP port."""
    assert all(one["IpProtocol"] == "tcp" and one["FromPort"] == one["ToPort"] for one in permissions)
    return {
        (one["FromPort"], str(part.get("CidrIp") or part.get("GroupId")))
        for one in permissions
        for part in [*one.get("IpRanges", ()), *one.get("UserIdGroupPairs", ())]
    }


def test_the_host_has_its_rights_its_name_and_no_door(up: Environment) -> None:
    outputs = up.outputs()
    wanted = [{"Name": "tag:Name", "Values": ["livemount-aws-host"]}]
    host = up.ask("ec2", "describe_instances", Filters=wanted)["Reservations"][0]["Instances"][0]
    assert host["PrivateIpAddress"] == outputs.host_address
    assert "KeyName" not in host
    assert not host.get("PublicIpAddress")
    assert outputs.endpoint == f"https://{outputs.host_address}:8443"

    zones = up.ask("route53", "list_hosted_zones")["HostedZones"]
    assert [(zone["Name"], zone["Config"]["PrivateZone"]) for zone in zones] == [("livemount.internal.", True)]
    records = up.ask("route53", "list_resource_record_sets", HostedZoneId=zones[0]["Id"])["ResourceRecordSets"]
    found = [one for one in records if one["Type"] == "A"]
    assert [(one["Name"], one["ResourceRecords"]) for one in found] == [
        ("boot.livemount.internal.", [{"Value": outputs.host_address}])
    ]

    bucket = up.ask("s3", "list_buckets")["Buckets"][0]["Name"]
    profile = host["IamInstanceProfile"]["Arn"].rpartition("/")[2]
    known = up.ask("iam", "get_instance_profile", InstanceProfileName=profile)["InstanceProfile"]
    role = known["Roles"][0]["RoleName"]
    assert up.ask("iam", "list_attached_role_policies", RoleName=role)["AttachedPolicies"] == []
    policy = up.ask("iam", "get_role_policy", RoleName=role, PolicyName="live-mount-host")["PolicyDocument"]
    asked = AwsRequest(region=REGION, host_image=up.image, source_buckets=("copies",))
    assert policy == json.loads(host_policy(asked, "aws", bucket))


def test_the_host_fetches_its_code_and_secrets_which_no_state_has(up: Environment) -> None:
    paths = up.settings.paths()
    wanted = [{"Name": "tag:Name", "Values": ["livemount-aws-host"]}]
    instance = up.ask("ec2", "describe_instances", Filters=wanted)["Reservations"][0]["Instances"][0]["InstanceId"]
    given = up.ask("ec2", "describe_instance_attribute", InstanceId=instance, Attribute="userData")
    script = base64.b64decode(given["UserData"]["Value"]).decode()
    run("bash", "-n", input=script)

    bucket = up.ask("s3", "list_buckets")["Buckets"][0]["Name"]
    (found,) = up.ask("s3", "list_objects_v2", Bucket=bucket)["Contents"]
    archive = up.ask("s3", "get_object", Bucket=bucket, Key=found["Key"])["Body"].read()
    assert f"s3://{bucket}/{found['Key']}" in script
    assert hashlib.sha256(archive).hexdigest() in script
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive))) as tar:
        assert {"setup/run", "ansible/site.yml", "livemount/configure/__main__.py"} <= set(tar.getnames())

    names = ["api-token", "server-cert.pem", "server-key.pem"]
    wanted_names = [f"/livemount/aws/{name}" for name in names]
    kept = up.ask("ssm", "get_parameters", Names=wanted_names, WithDecryption=True)["Parameters"]
    assert {one["Type"] for one in kept} == {"SecureString"}
    secrets = {one["Name"].rpartition("/")[2]: one["Value"] for one in kept}
    assert secrets["api-token"] == paths.api_token.read_text().strip()
    assert "PRIVATE KEY" in secrets["server-key.pem"]
    known = script + up.pulumi("stack", "export") + paths.outputs.read_text()
    for secret in (secrets["api-token"], secrets["server-key.pem"].splitlines()[1]):
        assert secret not in known


def test_the_machine_image_is_published_for_both_firmwares(up: Environment) -> None:
    outputs = up.outputs()
    assert outputs.aws is not None
    # What was asked for: moto keeps no more of an image than its name.
    exported = json.loads(up.pulumi("stack", "export"))["deployment"]["resources"]
    asked = {one["id"]: one["inputs"] for one in exported if one["type"] == "aws:ec2/ami:Ami"}
    modes = {firmware: asked[id]["bootMode"] for firmware, id in outputs.aws.images.items()}
    assert modes == {Firmware.BIOS: "legacy-bios", Firmware.UEFI: "uefi"}
    assert {one["enaSupport"] for one in asked.values()} == {True}
    snapshots = {one["ebsBlockDevices"][0]["snapshotId"] for one in asked.values()}
    assert len(snapshots) == 1
    keys = up.folder / "keys"
    variables = aws_environment(up.moto)
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    keys.write_text("".join(f"{name}={variables[name]}\n" for name in names))
    keys.chmod(0o600)
    source = open_source(f"ebs://{REGION}/{snapshots.pop()}?endpoint={up.moto.endpoint}", keys)
    try:
        content = outputs.image.read_bytes()
        assert hashlib.sha256(content).hexdigest() == outputs.image_digest
        assert source.read(0, len(content)) == content
    finally:
        source.close()
