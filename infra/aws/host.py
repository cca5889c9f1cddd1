"""The live-mount host: an instance without public address or ssh, which fetches its own set-up when it starts.

Cloud-init pulls: the user data names an archive in the environment's bucket, with its SHA-256, and the host runs the
same set-up and roles as any machine. So nothing listens for orders, and no agent that takes them runs as root (which
SSM's does); what changes is a new host. Its secrets are no part of the user data, which every process on the host and
everyone who may describe instances can read.
"""

from __future__ import annotations

import pulumi
import pulumi_aws as aws
from jinja2 import Environment, PackageLoader, StrictUndefined

from infra.aws.api import API_PORT, AwsRequest
from infra.aws.common import Maker
from infra.aws.network import Network
from infra.aws.permissions import ASSUME, host_policy, parameter_path

DATA_DEVICE = "/dev/sdf"
ROOT_GIB = 20
BOOT_TTL = 60
"""Seconds for which resolvers keep the address of the boot server."""


def user_data(request: AwsRequest, environment: str, address: str, bucket: str, key: str, digest: str) -> str:
    """What the host does when it starts for the first time: a shell script."""
    templates = Environment(
        loader=PackageLoader("infra.aws", "."),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (not HTML: each value is checked against a pattern, or made by AWS or us)
    )
    return templates.get_template("host.sh.j2").render(
        environment=environment,
        region=request.region,
        address=address,
        port=API_PORT,
        bucket=bucket,
        key=key,
        digest=digest,
        parameters=parameter_path(environment),
    )


class Host(pulumi.ComponentResource):
    """Instance, its address and name, its disk, and its rights."""

    def __init__(
        self,
        request: AwsRequest,
        environment: str,
        maker: Maker,
        network: Network,
        *,
        bucket: pulumi.Output[str],
        boot_name: str,
        opts: pulumi.ResourceOptions,
    ) -> None:
        super().__init__("livemount:aws:Host", "host", None, opts)
        self._maker = maker = maker.below(self)
        self._request, self._environment, self._network, self._bucket = request, environment, network, bucket
        self._interface = aws.ec2.NetworkInterface(
            "host-interface",
            subnet_id=network.host_subnet_id,
            security_groups=[network.hosts.id],
            description=f"{maker.prefix}: live-mount host",
            tags=maker.tags("host"),
            opts=maker.opts(),
        )
        self.address: pulumi.Output[str] = self._interface.private_ip
        zone = aws.route53.Zone(
            "zone",
            name=boot_name.partition(".")[2],
            comment=f"{maker.prefix}: the boot server's name",
            vpcs=[aws.route53.ZoneVpcArgs(vpc_id=network.vpc_id, vpc_region=request.region)],
            tags=maker.tags("zone"),
            opts=maker.opts(),
        )
        aws.route53.Record(
            "boot-name",
            zone_id=zone.zone_id,
            name=boot_name,
            type="A",
            ttl=BOOT_TTL,
            records=[self.address],
            opts=maker.opts(),
        )

    def start(self, *, key: pulumi.Output[str], digest: pulumi.Output[str], ready: list[pulumi.Resource]) -> None:
        """Make the machine, once `ready` is there; `key` and `digest` name its code in the bucket."""
        request, maker = self._request, self._maker
        role = aws.iam.Role(
            "role",
            name_prefix=f"{maker.prefix}-host-",
            assume_role_policy=ASSUME,
            tags=maker.tags("host"),
            opts=maker.opts(),
        )
        rights = aws.iam.RolePolicy(
            "rights",
            name="live-mount-host",
            role=role.name,
            policy=self._bucket.apply(lambda bucket: host_policy(request, self._environment, bucket)),
            opts=maker.opts(),
        )
        profile = aws.iam.InstanceProfile(
            "profile",
            name_prefix=f"{maker.prefix}-host-",
            role=role.name,
            tags=maker.tags("host"),
            opts=maker.opts(),
        )
        script = pulumi.Output.all(self.address, self._bucket, key, digest).apply(
            lambda known: user_data(request, self._environment, *known)
        )
        instance = aws.ec2.Instance(
            "host",
            ami=request.host_image,
            instance_type=request.host_type,
            iam_instance_profile=profile.name,
            primary_network_interface={"network_interface_id": self._interface.id},
            metadata_options={
                "http_endpoint": "enabled", "http_tokens": "required", "http_put_response_hop_limit": 1,
            },
            root_block_device={
                "encrypted": True, "kms_key_id": request.kms_key, "volume_type": "gp3", "volume_size": ROOT_GIB,
                "tags": maker.tags("host-root"),
            },
            user_data=script,
            user_data_replace_on_change=True,
            tags=maker.tags("host"),
            # The interface, and with it the address, is one instance's at a time.
            opts=maker.opts(depends_on=[*ready, *self._network.routes, rights], delete_before_replace=True),
        )  # fmt: skip
        disk = aws.ebs.Volume(
            "data",
            availability_zone=instance.availability_zone,
            size=request.data_disk_gib,
            type="gp3",
            encrypted=True,
            kms_key_id=request.kms_key,
            tags=maker.tags("data"),
            opts=maker.opts(),
        )
        aws.ec2.VolumeAttachment(
            "data",
            device_name=DATA_DEVICE,
            volume_id=disk.id,
            instance_id=instance.id,
            opts=maker.opts(delete_before_replace=True),
        )
        self.register_outputs({"address": self.address})
