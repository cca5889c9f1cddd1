"""What AWS is asked for, without Pulumi: settings, rights, sizes, and the policy that finds what may not be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.aws.api import TAG, AwsRequest
from infra.aws.permissions import host_policy, partition
from infra.aws.sizes import size_for, sizes
from infra.policy import CLOSED, ENCRYPTION, violations
from livemount.core.errors import UnsupportedError
from livemount.core.machine import MachineDescription

ASKED: dict[str, Any] = {"region": "eu-central-1", "host_image": "ami-0123456789abcdef0"}
TAGS = {TAG: "aws", "Name": "it"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"region": "europe"}, "region"),
        ({"client_cidrs": ["8.0.0.0/8"]}, "is not private"),
        ({"client_cidrs": ["10.0.0.0/7"]}, "is not private"),
        ({"vpc_cidr": "10.0.0.0/24"}, "/16 to /22"),
        ({"vpc_id": "vpc-0123456789"}, "together"),
        ({"tags": {"Name": "x"}}, "set by live mount"),
        ({"tags": {"livemount:mount": "x"}}, "set by live mount"),
        ({"source_buckets": ["copies/*"]}, "source_buckets"),
        ({"source_keys": ["arn:aws:kms:*:1:key/x"]}, "source_keys"),
        ({"data_disk_gib": 1}, "data_disk_gib"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AwsRequest.model_validate({**ASKED, **wrong})


def test_the_host_reads_and_nothing_else() -> None:
    asked = AwsRequest.model_validate(
        {**ASKED, "source_buckets": ["copies"], "source_keys": ["arn:aws:kms:eu-central-1:1:key/k"]}
    )
    statements = json.loads(host_policy(asked, "aws", "own"))["Statement"]
    actions = {
        action
        for one in statements
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
    }
    assert actions == {
        "ebs:GetSnapshotBlock", "ebs:ListChangedBlocks", "ebs:ListSnapshotBlocks", "ec2:DescribeSnapshots",
        "s3:GetObject", "s3:GetObjectVersion", "s3:ListBucket", "ssm:GetParameter", "kms:Decrypt",
    }  # fmt: skip
    assert {one["Sid"] for one in statements if one["Resource"] == "*"} == {"ListSnapshots"}
    assert {one["Effect"] for one in statements} == {"Allow"}
    bare = json.loads(host_policy(AwsRequest.model_validate(ASKED), "aws", "own"))["Statement"]
    assert {one["Sid"] for one in bare} == {"ReadSnapshots", "ListSnapshots", "OwnCode", "OwnSecrets"}


def test_regions_have_their_partitions() -> None:
    assert [partition(name) for name in ("eu-central-1", "cn-north-1", "us-gov-west-1")] == [
        "aws", "aws-cn", "aws-us-gov",
    ]  # fmt: skip


@given(st.integers(1, 128), st.integers(64, 1 << 20))
def test_a_size_has_what_the_machine_had_and_none_is_smaller(cpus: int, memory: int) -> None:
    machine = MachineDescription(cpus=cpus, memory_mib=memory)
    size = size_for(machine)
    assert size.cpus >= cpus
    assert size.memory_mib >= memory
    assert not any(
        other.cpus >= cpus and other.memory_mib >= memory
        and (other.cpus, other.memory_mib) < (size.cpus, size.memory_mib)
        for other in sizes()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cpus", "memory", "name"),
    [
        (1, 512, "t3.micro"),
        (2, 2048, "t3.small"),
        (2, 4096, "c6i.large"),
        (2, 8192, "m6i.large"),
        (3, 512, "c6i.xlarge"),
    ],
)
def test_sizes_that_are_known(cpus: int, memory: int, name: str) -> None:
    assert size_for(MachineDescription(cpus=cpus, memory_mib=memory)).name == name


def test_machines_that_have_no_size() -> None:
    with pytest.raises(UnsupportedError, match="512 processors"):
        size_for(MachineDescription(cpus=512))
    with pytest.raises(UnsupportedError, match="aarch64"):
        size_for(MachineDescription(architecture="aarch64"))


def resource(kind: str, **inputs: Any) -> dict[str, Any]:
    urn = f"urn:pulumi:aws::livemount::{kind}::it"
    return {"type": kind, "urn": urn, "id": "it", "inputs": {"tags": TAGS, **inputs}}


GOOD_INSTANCE = {"metadataOptions": {"httpTokens": "required"}, "rootBlockDevice": {"encrypted": True}}
INGRESS = "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (resource("aws:ec2/vpc:Vpc", tags={"Name": "it"}), "has not the tags"),
        (resource(INGRESS, cidrIpv4="0.0.0.0/0"), "lets the public in"),
        (resource(INGRESS, cidrIpv4="10.0.0.0/7"), "lets the public in"),
        (resource(INGRESS, cidrIpv6="::/0"), "lets the public in"),
        (resource("aws:ec2/securityGroup:SecurityGroup", ingress=[{}]), "rules of its own"),
        (resource("aws:ec2/subnet:Subnet", mapPublicIpOnLaunch=True), "gives public addresses"),
        (resource("aws:ec2/eip:Eip", instance="i-1"), "public address"),
        (resource("aws:ec2/instance:Instance", **GOOD_INSTANCE, associatePublicIpAddress=True), "public address"),
        (resource("aws:ec2/instance:Instance", **{**GOOD_INSTANCE, "metadataOptions": {}}), "IMDSv1"),
        (resource("aws:ec2/instance:Instance", **{**GOOD_INSTANCE, "rootBlockDevice": {}}), "not encrypted"),
        (resource("aws:ec2/instance:Instance", **GOOD_INSTANCE, keyName="mine"), "ssh"),
        (resource("aws:ebs/volume:Volume", size=1), "not encrypted"),
        (resource("aws:s3/bucket:Bucket"), "not encrypted"),
        (resource("aws:s3/bucket:Bucket"), "not closed"),
        (resource("aws:iam/rolePolicy:RolePolicy", policy='{"Statement": [{"Action": "s3:*"}]}'), r"allows s3:\*"),
    ],
)
def test_the_policy_finds(wrong: dict[str, Any], said: str) -> None:
    found = violations([wrong])
    assert any(said.replace("\\", "") in line for line in found), found


def test_the_policy_lets_pass() -> None:
    good = [
        resource(INGRESS, cidrIpv4="10.9.0.0/16"),
        resource(INGRESS, referencedSecurityGroupId="sg-1"),
        resource("aws:ec2/instance:Instance", **GOOD_INSTANCE),
        resource("aws:ebs/volume:Volume", encrypted=True),
        resource("aws:s3/bucket:Bucket"),
        resource(ENCRYPTION, bucket="it"),
        resource("aws:s3/bucketPublicAccessBlock:B", bucket="it", **dict.fromkeys(CLOSED, True)),
        resource("pulumi:providers:aws", tags={}),
    ]
    assert violations(good) == []
