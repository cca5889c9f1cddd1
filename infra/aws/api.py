"""What an environment in AWS is asked for, and what it gives to its mounts."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator, model_validator

from livemount.core.machine import Firmware, Frozen

TAG = "livemount:environment"
"""The tag that everything of an environment has, with its name; a mount's also have `MOUNT_TAG`."""
MOUNT_TAG = "livemount:mount"
PRIVATE = tuple(IPv4Network(network) for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
API_PORT = 8443
ISCSI_PORT = 3260
BOOT_PORT = 80


def _id(prefix: str) -> StringConstraints:
    return StringConstraints(pattern=rf"^{prefix}-[0-9a-f]{{8,17}}$")


Arn = Annotated[str, StringConstraints(pattern=r"^arn:aws[a-z-]*:[a-z0-9-]+:[^\s*?\"]*$")]
BucketName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")]


class AwsRequest(Frozen):
    """An environment in AWS. Each field is a setting of the stack, `livemount:aws...` (Pulumi.yaml)."""

    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    host_image: Annotated[str, _id("ami")]
    """The AMI of the live-mount host: Debian 12, x86_64."""
    host_type: str = Field(default="m6i.large", pattern=r"^[a-z0-9-]+\.[a-z0-9-]+$")
    data_disk_gib: int = Field(default=100, ge=10, le=16384)
    """The host's disk of recall stores and private stores."""
    vpc_id: Annotated[str, _id("vpc")] | None = None
    """An existing network; it has the two subnets, and routes by which the host's reaches the APIs of AWS."""
    host_subnet_id: Annotated[str, _id("subnet")] | None = None
    guest_subnet_id: Annotated[str, _id("subnet")] | None = None
    vpc_cidr: IPv4Network = IPv4Network("10.77.0.0/16")
    """Of the network that is made where none is given; its first /24s become the subnets."""
    availability_zone: str | None = Field(default=None, pattern=r"^[a-z]{2}(-[a-z]+)+-\d[a-z]$")
    """Of both subnets; default: the region's first."""
    client_cidrs: tuple[IPv4Network, ...] = ()
    """Private networks from which the live-mount host's API may be asked; by default only from its own subnet."""
    kms_key: Arn | None = None
    """The key of all disks that are made; default: the account's own for EBS."""
    source_keys: tuple[Arn, ...] = ()
    """Keys of EBS snapshots that are mounted."""
    source_buckets: tuple[BucketName, ...] = ()
    """Buckets with images or repositories that are mounted."""
    spot: bool = False
    """Whether mounts' machines are spot instances: cheaper, and AWS may take them away."""
    tags: Mapping[str, str] = Field(default_factory=dict)
    """More tags for everything."""

    @field_validator("vpc_cidr")
    @classmethod
    def _has_room(cls, cidr: IPv4Network) -> IPv4Network:
        if not 16 <= cidr.prefixlen <= 22 or not cidr.is_private:
            raise ValueError("a private network of /16 to /22")
        return cidr

    @field_validator("client_cidrs")
    @classmethod
    def _private(cls, cidrs: tuple[IPv4Network, ...]) -> tuple[IPv4Network, ...]:
        for cidr in cidrs:
            if not any(cidr.subnet_of(private) for private in PRIVATE):
                raise ValueError(f"{cidr} is not private: the API is for private networks (VPN, peering) only")
        return cidrs

    @field_validator("tags")
    @classmethod
    def _free(cls, tags: Mapping[str, str]) -> Mapping[str, str]:
        for key in tags:
            if key == "Name" or key.startswith(("livemount:", "aws:")):
                raise ValueError(f"the tag {key} is set by live mount or by AWS")
        return tags

    @model_validator(mode="after")
    def _whole(self) -> AwsRequest:
        given = [self.vpc_id, self.host_subnet_id, self.guest_subnet_id]
        if any(given) and not all(given):
            raise ValueError("an existing network is named by vpc_id, host_subnet_id and guest_subnet_id together")
        return self


class AwsOutputs(Frozen):
    """What mounts in AWS are made of."""

    region: str
    vpc_id: str
    guest_subnet_id: str
    guest_security_group_id: str
    images: dict[Firmware, str]
    """The machine image as an AMI, by what starts it."""
    kms_key: str | None = None
    spot: bool = False
    tags: dict[str, str]
