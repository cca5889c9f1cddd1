"""What tests of AWS ask moto, a stand-in: clients, the variables that lead to it, and all that is in it."""

from __future__ import annotations

import os
from typing import Any

from botocore.session import Session

from tests.support.moto_stand_in import ACCESS_KEY, REGION, SECRET_KEY, MotoStandIn


def aws_environment(moto: MotoStandIn) -> dict[str, str]:
    """The variables by which SDKs of AWS ask moto, with no other keys than its own."""
    return {
        "AWS_ENDPOINT_URL": moto.endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        "NO_PROXY": "127.0.0.1",
    }


LISTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "ec2": (
        ("describe_vpcs", "Vpcs", "VpcId"),
        ("describe_subnets", "Subnets", "SubnetId"),
        ("describe_internet_gateways", "InternetGateways", "InternetGatewayId"),
        ("describe_addresses", "Addresses", "AllocationId"),
        ("describe_nat_gateways", "NatGateways", "NatGatewayId"),
        ("describe_route_tables", "RouteTables", "RouteTableId"),
        ("describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
        ("describe_security_groups", "SecurityGroups", "GroupId"),
        ("describe_security_group_rules", "SecurityGroupRules", "SecurityGroupRuleId"),
        ("describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
        ("describe_volumes", "Volumes", "VolumeId"),
    ),
    "iam": (
        ("list_roles", "Roles", "RoleName"),
        ("list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
    ),
    "route53": (("list_hosted_zones", "HostedZones", "Id"),),
    "s3": (("list_buckets", "Buckets", "Name"),),
    "ssm": (("describe_parameters", "Parameters", "Name"),),
}
GONE = ("deleted", "deleting", "terminated")


class Asker:
    """Asks moto by clients that are made once: that takes longer than the asking."""

    def __init__(self, moto: MotoStandIn) -> None:
        self._endpoint = moto.endpoint
        self._session = Session()
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The client of a service."""
        if service not in self._clients:
            self._clients[service] = self._session.create_client(
                service, region_name=REGION, endpoint_url=self._endpoint,
                aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
            )  # fmt: skip
        return self._clients[service]

    def __call__(self, service: str, operation: str, **words: Any) -> Any:
        """What moto says."""
        return getattr(self.client(service), operation)(**words)

    def image(self) -> str:
        """An image, as users bring it."""
        disk = {"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 8}}
        words = {"Name": f"image-{os.urandom(4).hex()}", "RootDeviceName": "/dev/xvda", "Architecture": "x86_64"}
        return str(self("ec2", "register_image", **words, BlockDeviceMappings=[disk])["ImageId"])

    def inventory(self) -> dict[str, list[str]]:
        """The ids of all there is, by what it is."""
        found: dict[str, list[str]] = {}
        for service, lists in LISTS.items():
            for operation, field, name in lists:
                items = self(service, operation)[field]
                found[field] = sorted(str(item[name]) for item in items if item.get("State") not in GONE)
        snapshots = self("ec2", "describe_snapshots", OwnerIds=["self"])["Snapshots"]
        found["Snapshots"] = sorted(one["SnapshotId"] for one in snapshots)
        images = self("ec2", "describe_images", Owners=["self"])["Images"]
        found["Images"] = sorted(one["ImageId"] for one in images)
        instances = [one for group in self("ec2", "describe_instances")["Reservations"] for one in group["Instances"]]
        found["Instances"] = [one["InstanceId"] for one in instances if one["State"]["Name"] not in GONE]
        return found

    def close(self) -> None:
        """Let go of the connections."""
        for client in self._clients.values():
            client.close()
