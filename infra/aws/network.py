"""The network: a host's subnet with a way out, a guests' subnet without one, and who may reach what.

Guests are copies of real machines: left to themselves they would go on with the real one's work. So their subnet has
no route but to its own network, and their security group lets them ask the live-mount host, and nobody else.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import pulumi
import pulumi_aws as aws

from infra.aws.api import API_PORT, BOOT_PORT, ISCSI_PORT, AwsRequest
from infra.aws.common import Maker

ANYWHERE = "0.0.0.0/0"


class Network(pulumi.ComponentResource):
    """An existing network, or one that is made, with security groups."""

    vpc_id: pulumi.Input[str]
    host_subnet_id: pulumi.Input[str]
    guest_subnet_id: pulumi.Input[str]

    def __init__(self, request: AwsRequest, maker: Maker, opts: pulumi.ResourceOptions) -> None:
        super().__init__("livemount:aws:Network", "network", None, opts)
        self._maker = maker.below(self)
        self.routes: Sequence[pulumi.Resource] = ()
        """What must be there before the host starts, for it to reach anything."""
        if request.vpc_id and request.host_subnet_id and request.guest_subnet_id:
            self.vpc_id, self.host_subnet_id, self.guest_subnet_id = (
                request.vpc_id, request.host_subnet_id, request.guest_subnet_id,
            )  # fmt: skip
        else:
            self._make(request)
        self.guests = self._group("guests", "Machines of live mounts")
        self.hosts = self._group("hosts", "Live-mount hosts")
        for name, port in (("iscsi", ISCSI_PORT), ("boot", BOOT_PORT)):
            self._rule(f"{name}-out", self.guests, port, egress=True, to=self.hosts)
            self._rule(f"{name}-in", self.hosts, port, egress=False, to=self.guests)
        for cidr in request.client_cidrs:
            self._rule(f"api-{cidr}", self.hosts, API_PORT, egress=False, cidr=str(cidr))
        for port in (443, 80):  # the APIs of AWS; Debian's packages
            self._rule(f"host-{port}-out", self.hosts, port, egress=True, cidr=ANYWHERE)
        self.register_outputs({"vpcId": self.vpc_id})

    def _make(self, request: AwsRequest) -> None:
        maker = self._maker
        vpc = aws.ec2.Vpc(
            "vpc",
            cidr_block=str(request.vpc_cidr),
            enable_dns_support=True,
            enable_dns_hostnames=True,
            tags=maker.tags("vpc"),
            opts=maker.opts(),
        )
        zone = request.availability_zone or f"{request.region}a"
        subnets = {
            name: aws.ec2.Subnet(
                f"{name}-subnet",
                vpc_id=vpc.id,
                cidr_block=str(cidr),
                availability_zone=zone,
                map_public_ip_on_launch=False,
                tags=maker.tags(name),
                opts=maker.opts(),
            )
            for name, cidr in zip(
                ("guests", "hosts", "nat"), islice(request.vpc_cidr.subnets(new_prefix=24), 3), strict=True
            )
        }
        gateway = aws.ec2.InternetGateway("internet", vpc_id=vpc.id, tags=maker.tags("internet"), opts=maker.opts())
        address = aws.ec2.Eip("nat-address", domain="vpc", tags=maker.tags("nat"), opts=maker.opts(depends_on=gateway))
        nat = aws.ec2.NatGateway(
            "nat",
            allocation_id=address.id,
            subnet_id=subnets["nat"].id,
            tags=maker.tags("nat"),
            opts=maker.opts(depends_on=gateway),
        )
        tables = {name: self._routes(name, vpc, subnet) for name, subnet in subnets.items()}
        aws.ec2.Route(
            "nat-route",
            route_table_id=tables["nat"].id,
            destination_cidr_block=ANYWHERE,
            gateway_id=gateway.id,
            opts=maker.opts(),
        )
        out = aws.ec2.Route(
            "hosts-route",
            route_table_id=tables["hosts"].id,
            destination_cidr_block=ANYWHERE,
            nat_gateway_id=nat.id,
            opts=maker.opts(),
        )
        # What is recalled from S3 does not go, and is not paid, through the NAT gateway.
        aws.ec2.VpcEndpoint(
            "s3",
            vpc_id=vpc.id,
            service_name=f"com.amazonaws.{request.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[tables["hosts"].id],
            tags=maker.tags("s3"),
            opts=maker.opts(),
        )
        self.vpc_id, self.routes = vpc.id, [out]
        self.host_subnet_id, self.guest_subnet_id = subnets["hosts"].id, subnets["guests"].id

    def _routes(self, name: str, vpc: aws.ec2.Vpc, subnet: aws.ec2.Subnet) -> aws.ec2.RouteTable:
        maker = self._maker
        table = aws.ec2.RouteTable(f"{name}-routes", vpc_id=vpc.id, tags=maker.tags(name), opts=maker.opts())
        aws.ec2.RouteTableAssociation(f"{name}-routes", subnet_id=subnet.id, route_table_id=table.id, opts=maker.opts())
        return table

    def _group(self, name: str, description: str) -> aws.ec2.SecurityGroup:
        return aws.ec2.SecurityGroup(
            name,
            name=f"{self._maker.prefix}-{name}",
            description=description,
            vpc_id=self.vpc_id,
            tags=self._maker.tags(name),
            opts=self._maker.opts(),
        )

    def _rule(
        self,
        name: str,
        group: aws.ec2.SecurityGroup,
        port: int,
        *,
        egress: bool,
        to: aws.ec2.SecurityGroup | None = None,
        cidr: str | None = None,
    ) -> None:
        kind = aws.vpc.SecurityGroupEgressRule if egress else aws.vpc.SecurityGroupIngressRule
        kind(
            name,
            security_group_id=group.id,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            cidr_ipv4=cidr,
            referenced_security_group_id=None if to is None else to.id,
            tags=self._maker.tags(name),
            opts=self._maker.opts(),
        )
