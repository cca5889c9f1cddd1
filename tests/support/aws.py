"""What tests of AWS ask moto, a stand-in: clients, the variables that lead to it, and all that is in it."""

from __future__ import annotations

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


def aws_client(moto: MotoStandIn, service: str) -> Any:
    """A client of moto."""
    return Session().create_client(
        service, region_name=REGION, endpoint_url=moto.endpoint,
        aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
    )  # fmt: skip


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


def inventory(moto: MotoStandIn) -> dict[str, list[str]]:
    """The ids of all there is, by what it is."""
    found: dict[str, list[str]] = {}
    for service, lists in LISTS.items():
        client = aws_client(moto, service)
        for operation, field, name in lists:
            items = getattr(client, operation)()[field]
            found[field] = sorted(str(item[name]) for item in items if item.get("State") not in GONE)
        client.close()
    client = aws_client(moto, "ec2")
    found["Snapshots"] = [one["SnapshotId"] for one in client.describe_snapshots(OwnerIds=["self"])["Snapshots"]]
    found["Images"] = [one["ImageId"] for one in client.describe_images(Owners=["self"])["Images"]]
    instances = [one for group in client.describe_instances()["Reservations"] for one in group["Instances"]]
    found["Instances"] = [one["InstanceId"] for one in instances if one["State"]["Name"] not in GONE]
    client.close()
    return found
