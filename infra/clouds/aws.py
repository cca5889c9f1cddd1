"""AWS: an environment in a VPC, and machines that run from their copies in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import pulumi
import pulumi_aws as aws

from infra.api import EnvironmentOutputs, EnvironmentRequest, MountRequest
from infra.aws.api import API_PORT, MOUNT_TAG, TAG, AwsOutputs
from infra.aws.common import Maker
from infra.aws.host import Host
from infra.aws.image import Images, Storage
from infra.aws.network import Network
from infra.aws.permissions import CODE_PREFIX, parameter_path
from infra.aws.sizes import size_for
from infra.aws.sweep import sweep
from infra.clouds.base import Cloud, MountInterface, MountMachine
from infra.resources import HostCode, HostSecrets
from livemount.core.errors import CorruptError, UsageError


class AwsCloud(Cloud):
    """A VPC with a live-mount host; guests in a subnet without a way out."""

    def __init__(self) -> None:
        self._maker: Maker | None = None

    def _mount(
        self, request: MountRequest, environment: EnvironmentOutputs, opts: pulumi.ResourceOptions
    ) -> tuple[AwsOutputs, Maker]:
        known = _known(environment)
        # One provider for all of a mount: each is a process of its own.
        self._maker = self._maker or Maker(
            environment.name, known.region, {**known.tags, MOUNT_TAG: request.mount}, opts
        )
        return known, self._maker

    def environment(self, request: EnvironmentRequest, opts: pulumi.ResourceOptions) -> Mapping[str, pulumi.Input[Any]]:
        """Network, host's address and name, its code and secrets, the host, machine image."""
        if request.aws is None:
            raise UsageError("the settings of AWS are missing", hint="see Pulumi.aws.yaml and docs/aws.md")
        asked, paths = request.aws, request.paths
        maker = Maker(request.name, asked.region, asked.tags, opts)
        network = Network(asked, maker, opts)
        storage = Storage(maker, opts)
        host = Host(
            asked,
            request.name,
            maker,
            network,
            bucket=storage.name,
            boot_name=urlsplit(request.boot_url).hostname or "",
            opts=opts,
        )
        secrets = HostSecrets(
            "host-secrets",
            region=asked.region,
            path=parameter_path(request.name),
            token_file=paths.api_token,
            authority=paths.secrets / "host",
            name="live-mount-host",
            address=host.address,
            tags=maker.tags("host"),
            opts=opts,
        )
        code = HostCode(
            "host-code",
            region=asked.region,
            bucket=storage.name,
            prefix=CODE_PREFIX,
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=storage.ready)),
        )
        host.start(key=code.output("key"), digest=code.output("digest"), ready=[secrets, code])
        images = Images(maker, images=paths.images, ipxe=request.ipxe, boot_url=request.boot_url, opts=opts)
        return {
            "endpoint": host.address.apply(lambda address: f"https://{address}:{API_PORT}"),
            "token_file": str(paths.api_token),
            "ca_file": secrets.output("caFile"),
            "host_address": host.address,
            "network": network.vpc_id,
            "image": images.path,
            "image_digest": images.digest,
            "aws": {
                "region": asked.region,
                "vpc_id": network.vpc_id,
                "guest_subnet_id": network.guest_subnet_id,
                "guest_security_group_id": network.guests.id,
                "images": images.ids,
                "kms_key": asked.kms_key,
                "spot": asked.spot,
                "tags": maker.shared_tags,
            },
        }

    def interface(
        self, request: MountRequest, environment: EnvironmentOutputs, opts: pulumi.ResourceOptions
    ) -> MountInterface:
        """An interface in the guests' subnet, without a public address."""
        known, maker = self._mount(request, environment, opts)
        interface = aws.ec2.NetworkInterface(
            "interface",
            subnet_id=known.guest_subnet_id,
            security_groups=[known.guest_security_group_id],
            description=f"live mount {request.mount}",
            tags=maker.tags(request.mount),
            opts=maker.opts(),
        )
        return MountInterface(interface, interface.private_ip, interface.mac_address)

    def machine(
        self,
        request: MountRequest,
        environment: EnvironmentOutputs,
        interface: MountInterface,
        opts: pulumi.ResourceOptions,
    ) -> MountMachine:
        """An instance of the smallest type that has what the copy's machine had."""
        known, maker = self._mount(request, environment, opts)
        size = size_for(request.machine)
        spot = {
            "market_type": "spot",
            "spot_options": {"spot_instance_type": "one-time", "instance_interruption_behavior": "terminate"},
        }
        machine = aws.ec2.Instance(
            "machine",
            ami=known.images[request.machine.firmware],
            instance_type=size.name,
            primary_network_interface={"network_interface_id": interface.resource.id},
            instance_market_options=spot if known.spot else None,
            # A guest that powers off has ended: its disk is on the live-mount host, here is nothing to keep.
            instance_initiated_shutdown_behavior="terminate",
            metadata_options={
                "http_endpoint": "enabled", "http_tokens": "required", "http_put_response_hop_limit": 1,
            },
            root_block_device={
                "encrypted": True, "kms_key_id": known.kms_key, "volume_type": "gp3",
                "delete_on_termination": True, "tags": maker.tags(request.mount),
            },
            tags=maker.tags(request.mount),
            opts=maker.opts(depends_on=opts.depends_on, delete_before_replace=True),
        )  # fmt: skip
        return MountMachine(machine, {"instanceId": machine.id, "instanceType": machine.instance_type})

    def sweep(self, mount: str, environment: EnvironmentOutputs) -> None:
        """Everything has the mount's tags."""
        sweep(_known(environment).region, {TAG: environment.name, MOUNT_TAG: mount})


def _known(environment: EnvironmentOutputs) -> AwsOutputs:
    if environment.aws is None:
        raise CorruptError(f"the environment {environment.name} says nothing of AWS", hint="`pulumi up` writes it anew")
    return environment.aws
