"""The stand-in for AWS knows the SDK's schema: what it must refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pulumi.runtime.rpc import UNKNOWN

from tests.support.aws_stand_in.resources import KINDS
from tests.support.aws_stand_in.schema import arguments_of, problems, properties_of

# The SDK says on its own import which of its modules are old.
pytestmark = pytest.mark.filterwarnings("ignore:.* has been deprecated:DeprecationWarning")

INSTANCE = "aws:ec2/instance:Instance"
PRIMARY = {"primaryNetworkInterface": {"networkInterfaceId": "eni-1"}}


def said(token: str, values: dict[str, Any]) -> str:
    return "; ".join(reason for _, reason in problems(arguments_of(token), values))


@pytest.mark.parametrize(
    "values",
    [
        {},
        PRIMARY,
        {"ami": "ami-1", "userDataReplaceOnChange": True, "tags": {"a": "b"}},
        {"ami": UNKNOWN, "tags": UNKNOWN},
        {"ebsBlockDevices": [{"deviceName": "/dev/sdf", "volumeSize": 8, "encrypted": True}]},
    ],
)
def test_what_the_sdk_takes(values: dict[str, Any]) -> None:
    assert said(INSTANCE, values) == ""


@pytest.mark.parametrize(
    ("token", "values", "wrong"),
    [
        (INSTANCE, {"colour": "red"}, "colour is no property of InstanceArgs"),
        (INSTANCE, {"ami": 1}, "ami cannot be 1"),
        (INSTANCE, {"ebsOptimized": "yes"}, "ebsOptimized cannot be 'yes'"),
        (INSTANCE, {"cpuCoreCount": 1}, "cpuCoreCount is no property"),
        (INSTANCE, {"primaryNetworkInterface": {}}, "primaryNetworkInterface cannot be {}"),
        (INSTANCE, {"ebsBlockDevices": [{"size": 8}]}, "ebsBlockDevices cannot be"),
        (INSTANCE, {"tags": {"a": 1}}, "tags cannot be"),
        ("aws:ec2/subnet:Subnet", {"cidrBlock": "10.0.0.0/24"}, "vpcId is missing"),
        ("aws:ebs/volume:Volume", {"availabilityZone": "a", "size": True}, "size cannot be True"),
    ],
)
def test_what_the_sdk_does_not_take(token: str, values: dict[str, Any], wrong: str) -> None:
    assert wrong in said(token, values)


def test_every_type_of_the_stand_in_is_one_of_the_sdk() -> None:
    for token, kind in KINDS.items():
        assert not kind.named or kind.named in properties_of(arguments_of(token)), token
