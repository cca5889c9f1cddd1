"""The resources that the stand-in makes, looks at and deletes in moto: one class or line each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from botocore.exceptions import ClientError
from botocore.session import Session

from tests.support.aws_stand_in import machines
from tests.support.moto_stand_in import ACCESS_KEY, SECRET_KEY

Values = dict[str, Any]
Made = tuple[str, Values]


class Clients:
    """Clients of moto, whose address is in AWS_ENDPOINT_URL."""

    region = ""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def __getattr__(self, service: str) -> Any:
        with self._lock:
            if service not in self._made:
                self._made[service] = Session().create_client(
                    service, region_name=self.region, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY
                )
            return self._made[service]


@dataclass(frozen=True)
class Kind:
    """How one type is made, found, changed and deleted."""

    create: Callable[[Clients, Values], Made]
    find: Callable[[Clients, str, Values], Any]
    """Raises `ClientError`, or gives something false, when it is gone."""
    delete: Callable[[Clients, str, Values], Any]
    named: str = ""
    """The property that is a name, made up where none is given."""
    updatable: frozenset[str] = frozenset({"tags", "tagsAll"})
    change: Callable[[Clients, str, Values], Any] | None = None

    def exists(self, clients: Clients, id: str, values: Values) -> bool:
        """Whether it is there."""
        try:
            return bool(self.find(clients, id, values))
        except ClientError as error:
            if "NotFound" in str(error) or "NoSuch" in str(error) or "404" in str(error):
                return False
            raise

    def update(self, clients: Clients, id: str, values: Values) -> None:
        """Change tags, or what the kind can."""
        if self.change is not None:
            self.change(clients, id, values)
        else:
            clients.ec2.create_tags(Resources=[id], Tags=pairs(values))


def pairs(values: Values) -> list[dict[str, str]]:
    """Tags as the APIs take them."""
    return [{"Key": key, "Value": value} for key, value in (values.get("tags") or {}).items()]


def given(values: Values, **names: str) -> Values:
    """The arguments of a call, by its own names, that have a value."""
    return {name: values[wire] for name, wire in names.items() if values.get(wire) is not None}


def tagged(kind: str, values: Values) -> list[Values]:
    """The tags of a resource of EC2 that is made."""
    return [{"ResourceType": kind, "Tags": pairs(values)}] if values.get("tags") else []


def ec2(
    tag: str, operation: str, listing: str, ids: str, answer: tuple[str, str], delete: tuple[str, str], **names: str
) -> Kind:
    """A type of EC2 that is made by one call: `answer` names the object and its id in what the call gives."""

    def create(clients: Clients, values: Values) -> Made:
        call = getattr(clients.ec2, f"create_{operation}")
        made = call(**given(values, **names), TagSpecifications=tagged(tag, values))
        made = made[answer[0]] if answer[0] else made
        return made[answer[1]], {"arn": f"arn:aws:ec2:{clients.region}:123456789012:{tag}/{made[answer[1]]}"}

    def find(clients: Clients, id: str, values: Values) -> Any:
        found = getattr(clients.ec2, f"describe_{listing}")(**{ids: [id]})
        items = next(part for name, part in found.items() if isinstance(part, list))
        return [item for item in items if item.get("State", "") not in ("deleted", "deleting")]

    def end(clients: Clients, id: str, values: Values) -> Any:
        return getattr(clients.ec2, delete[0])(**{delete[1]: [id] if delete[1].endswith("s") else id})

    return Kind(create, find, end)


def vpc_create(clients: Clients, values: Values) -> Made:
    made = clients.ec2.create_vpc(CidrBlock=values["cidrBlock"], TagSpecifications=tagged("vpc", values))["Vpc"]
    for name, call in (("enableDnsSupport", "EnableDnsSupport"), ("enableDnsHostnames", "EnableDnsHostnames")):
        if name in values:
            clients.ec2.modify_vpc_attribute(VpcId=made["VpcId"], **{call: {"Value": values[name]}})
    return made["VpcId"], {}


def gateway_create(clients: Clients, values: Values) -> Made:
    made = clients.ec2.create_internet_gateway(TagSpecifications=tagged("internet-gateway", values))
    id = made["InternetGateway"]["InternetGatewayId"]
    clients.ec2.attach_internet_gateway(InternetGatewayId=id, VpcId=values["vpcId"])
    return id, {}


def gateway_delete(clients: Clients, id: str, values: Values) -> None:
    clients.ec2.detach_internet_gateway(InternetGatewayId=id, VpcId=values["vpcId"])
    clients.ec2.delete_internet_gateway(InternetGatewayId=id)


NAT = ec2(
    "natgateway", "nat_gateway", "nat_gateways", "NatGatewayIds", ("NatGateway", "NatGatewayId"),
    ("delete_nat_gateway", "NatGatewayId"), SubnetId="subnetId", AllocationId="allocationId",
)  # fmt: skip


def nat_delete(clients: Clients, id: str, values: Values) -> None:
    """moto leaves a gateway's interface; in AWS it goes."""
    gateway = clients.ec2.describe_nat_gateways(NatGatewayIds=[id])["NatGateways"][0]
    clients.ec2.delete_nat_gateway(NatGatewayId=id)
    for address in gateway["NatGatewayAddresses"]:
        clients.ec2.delete_network_interface(NetworkInterfaceId=address["NetworkInterfaceId"])


def route_create(clients: Clients, values: Values) -> Made:
    clients.ec2.create_route(
        **given(
            values, RouteTableId="routeTableId", DestinationCidrBlock="destinationCidrBlock",
            GatewayId="gatewayId", NatGatewayId="natGatewayId",
        )
    )  # fmt: skip
    return f"{values['routeTableId']}_{values['destinationCidrBlock']}", {}


def group_create(clients: Clients, values: Values) -> Made:
    group = clients.ec2.create_security_group(
        **given(values, GroupName="name", Description="description", VpcId="vpcId"),
        TagSpecifications=tagged("security-group", values),
    )["GroupId"]
    # AWS lets a new group out to everywhere; the provider takes that away where the program does not ask for it.
    rules = clients.ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissionsEgress"]
    clients.ec2.revoke_security_group_egress(GroupId=group, IpPermissions=rules)
    return group, {}


def rule(direction: str) -> Kind:
    def create(clients: Clients, values: Values) -> Made:
        permission = given(values, IpProtocol="ipProtocol", FromPort="fromPort", ToPort="toPort")
        if "cidrIpv4" in values:
            permission["IpRanges"] = [{"CidrIp": values["cidrIpv4"]}]
        else:
            permission["UserIdGroupPairs"] = [{"GroupId": values["referencedSecurityGroupId"]}]
        made = getattr(clients.ec2, f"authorize_security_group_{direction}")(
            GroupId=values["securityGroupId"], IpPermissions=[permission],
            TagSpecifications=tagged("security-group-rule", values),
        )  # fmt: skip
        return made["SecurityGroupRules"][0]["SecurityGroupRuleId"], {}

    def delete(clients: Clients, id: str, values: Values) -> None:
        revoke = getattr(clients.ec2, f"revoke_security_group_{direction}")
        revoke(GroupId=values["securityGroupId"], SecurityGroupRuleIds=[id])

    def find(clients: Clients, id: str, values: Values) -> Any:
        return clients.ec2.describe_security_group_rules(SecurityGroupRuleIds=[id])["SecurityGroupRules"]

    return Kind(create, find, delete)


def interface_create(clients: Clients, values: Values) -> Made:
    made = clients.ec2.create_network_interface(
        **given(values, SubnetId="subnetId", Groups="securityGroups", Description="description"),
        TagSpecifications=tagged("network-interface", values),
    )["NetworkInterface"]
    address = made["PrivateIpAddress"]
    machines.plug(made["NetworkInterfaceId"], address)
    outputs = {"privateIp": address, "privateIps": [address], "macAddress": made["MacAddress"]}
    return made["NetworkInterfaceId"], outputs


def instance_create(clients: Clients, values: Values) -> Made:
    root, primary = values.get("rootBlockDevice") or {}, values["primaryNetworkInterface"]
    image = clients.ec2.describe_images(ImageIds=[values["ami"]])["Images"][0]
    profile = {"IamInstanceProfile": {"Name": values["iamInstanceProfile"]}} if "iamInstanceProfile" in values else {}
    market = values.get("instanceMarketOptions")
    made = clients.ec2.run_instances(
        **given(
            values,
            ImageId="ami",
            InstanceType="instanceType",
            UserData="userData",
            InstanceInitiatedShutdownBehavior="instanceInitiatedShutdownBehavior",
        ),
        **profile,
        **({"InstanceMarketOptions": {"MarketType": market["marketType"]}} if market else {}),
        MinCount=1,
        MaxCount=1,
        NetworkInterfaces=[{"NetworkInterfaceId": primary["networkInterfaceId"], "DeviceIndex": 0}],
        MetadataOptions={"HttpTokens": values["metadataOptions"]["httpTokens"]},
        BlockDeviceMappings=[
            {
                "DeviceName": image["RootDeviceName"],
                "Ebs": {
                    "VolumeSize": 1,
                    **given(root, Encrypted="encrypted", VolumeType="volumeType", VolumeSize="volumeSize"),
                    "DeleteOnTermination": root.get("deleteOnTermination", True),  # the provider's default
                },
            }
        ],
        TagSpecifications=tagged("instance", values),
    )["Instances"][0]
    machines.start(clients, made["InstanceId"], primary["networkInterfaceId"], image)
    return made["InstanceId"], {"availabilityZone": made["Placement"]["AvailabilityZone"]}  # fmt: skip


def instance_find(clients: Clients, id: str, values: Values) -> Any:
    found = clients.ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]
    return found["State"]["Name"] not in ("terminated", "shutting-down")


def instance_delete(clients: Clients, id: str, values: Values) -> None:
    machines.end(id)
    clients.ec2.terminate_instances(InstanceIds=[id])


def interface_delete(clients: Clients, id: str, values: Values) -> None:
    clients.ec2.delete_network_interface(NetworkInterfaceId=id)
    machines.unplug(id)


def attachment_create(clients: Clients, values: Values) -> Made:
    clients.ec2.attach_volume(**given(values, Device="deviceName", VolumeId="volumeId", InstanceId="instanceId"))
    return f"vai-{values['volumeId']}", {}


def association_create(clients: Clients, values: Values) -> Made:
    made = clients.ec2.associate_route_table(**given(values, RouteTableId="routeTableId", SubnetId="subnetId"))
    return made["AssociationId"], {}


def image_create(clients: Clients, values: Values) -> Made:
    devices = [
        {
            "DeviceName": device["deviceName"],
            "Ebs": given(device, SnapshotId="snapshotId", VolumeType="volumeType"),
        }
        for device in values["ebsBlockDevices"]
    ]
    snapshots = [device["Ebs"]["SnapshotId"] for device in devices]
    states = {one["State"] for one in clients.ec2.describe_snapshots(SnapshotIds=snapshots)["Snapshots"]}
    assert states == {"completed"}, "AWS makes no image of a snapshot that is not completed"
    # moto keeps its name, and makes a snapshot of its own for it.
    made = clients.ec2.register_image(
        **given(values, Name="name", Description="description"), BlockDeviceMappings=devices
    )["ImageId"]
    clients.ec2.create_tags(Resources=[made], Tags=[*pairs(values), *machines.tags(snapshots[0], values["bootMode"])])
    return made, {"rootSnapshotId": snapshots[0]}


def image_delete(clients: Clients, id: str, values: Values) -> None:
    image = clients.ec2.describe_images(ImageIds=[id])["Images"][0]
    clients.ec2.deregister_image(ImageId=id)
    clients.ec2.delete_snapshot(SnapshotId=image["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"])


def role_create(clients: Clients, values: Values) -> Made:
    clients.iam.create_role(
        RoleName=values["name"], AssumeRolePolicyDocument=values["assumeRolePolicy"], Tags=pairs(values)
    )
    return values["name"], {}


def policy_create(clients: Clients, values: Values) -> Made:
    clients.iam.put_role_policy(RoleName=values["role"], PolicyName=values["name"], PolicyDocument=values["policy"])
    return f"{values['role']}:{values['name']}", {}


def profile_create(clients: Clients, values: Values) -> Made:
    clients.iam.create_instance_profile(InstanceProfileName=values["name"], Tags=pairs(values))
    clients.iam.add_role_to_instance_profile(InstanceProfileName=values["name"], RoleName=values["role"])
    return values["name"], {}


def profile_delete(clients: Clients, id: str, values: Values) -> None:
    clients.iam.remove_role_from_instance_profile(InstanceProfileName=id, RoleName=values["role"])
    clients.iam.delete_instance_profile(InstanceProfileName=id)


def zone_create(clients: Clients, values: Values) -> Made:
    network = values["vpcs"][0]
    made = clients.route53.create_hosted_zone(
        Name=values["name"], CallerReference=network["vpcId"],
        VPC={"VPCRegion": network["vpcRegion"], "VPCId": network["vpcId"]},
        HostedZoneConfig={"PrivateZone": True, "Comment": values["comment"]},
    )["HostedZone"]  # fmt: skip
    id = made["Id"].rpartition("/")[2]
    clients.route53.change_tags_for_resource(ResourceType="hostedzone", ResourceId=id, AddTags=pairs(values))
    return id, {"zoneId": id}


def record(action: str) -> Callable[[Clients, Values], Made]:
    def change(clients: Clients, values: Values) -> Made:
        entry = {
            "Name": values["name"], "Type": values["type"], "TTL": values["ttl"],
            "ResourceRecords": [{"Value": value} for value in values["records"]],
        }  # fmt: skip
        clients.route53.change_resource_record_sets(
            HostedZoneId=values["zoneId"], ChangeBatch={"Changes": [{"Action": action, "ResourceRecordSet": entry}]}
        )
        return f"{values['zoneId']}_{values['name']}_{values['type']}", {}

    return change


def bucket_create(clients: Clients, values: Values) -> Made:
    place = {"LocationConstraint": clients.region}
    clients.s3.create_bucket(Bucket=values["bucket"], CreateBucketConfiguration=place)
    clients.s3.put_bucket_tagging(Bucket=values["bucket"], Tagging={"TagSet": pairs(values)})
    return values["bucket"], {}


def bucket_delete(clients: Clients, id: str, values: Values) -> None:
    if values.get("forceDestroy"):
        for found in clients.s3.list_objects_v2(Bucket=id).get("Contents", ()):
            clients.s3.delete_object(Bucket=id, Key=found["Key"])
    clients.s3.delete_bucket(Bucket=id)


def access_create(clients: Clients, values: Values) -> Made:
    closed = given(
        values, BlockPublicAcls="blockPublicAcls", BlockPublicPolicy="blockPublicPolicy",
        IgnorePublicAcls="ignorePublicAcls", RestrictPublicBuckets="restrictPublicBuckets",
    )  # fmt: skip
    clients.s3.put_public_access_block(Bucket=values["bucket"], PublicAccessBlockConfiguration=closed)
    return values["bucket"], {}


def encryption_create(clients: Clients, values: Values) -> Made:
    chosen = values["rules"][0]["applyServerSideEncryptionByDefault"]["sseAlgorithm"]
    rules = [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": chosen}}]
    clients.s3.put_bucket_encryption(Bucket=values["bucket"], ServerSideEncryptionConfiguration={"Rules": rules})
    return values["bucket"], {}


def always(clients: Clients, id: str, values: Values) -> bool:
    """What is no thing of its own is there as long as what it belongs to."""
    return True


KINDS: dict[str, Kind] = {
    "aws:ec2/vpc:Vpc": Kind(
        vpc_create,
        lambda clients, id, _: clients.ec2.describe_vpcs(VpcIds=[id])["Vpcs"],
        lambda clients, id, _: clients.ec2.delete_vpc(VpcId=id),
    ),
    "aws:ec2/subnet:Subnet": ec2(
        "subnet", "subnet", "subnets", "SubnetIds", ("Subnet", "SubnetId"), ("delete_subnet", "SubnetId"),
        VpcId="vpcId", CidrBlock="cidrBlock", AvailabilityZone="availabilityZone",
    ),
    "aws:ec2/internetGateway:InternetGateway": Kind(
        gateway_create,
        lambda clients, id, _: clients.ec2.describe_internet_gateways(InternetGatewayIds=[id])["InternetGateways"],
        gateway_delete,
    ),
    "aws:ec2/eip:Eip": Kind(
        lambda clients, values: (
            clients.ec2.allocate_address(
                Domain=values["domain"], TagSpecifications=tagged("elastic-ip", values)
            )["AllocationId"],
            {},
        ),
        lambda clients, id, _: clients.ec2.describe_addresses(AllocationIds=[id])["Addresses"],
        lambda clients, id, _: clients.ec2.release_address(AllocationId=id),
    ),
    "aws:ec2/natGateway:NatGateway": replace(NAT, delete=nat_delete),
    "aws:ec2/routeTable:RouteTable": ec2(
        "route-table", "route_table", "route_tables", "RouteTableIds", ("RouteTable", "RouteTableId"),
        ("delete_route_table", "RouteTableId"), VpcId="vpcId",
    ),
    "aws:ec2/route:Route": Kind(
        route_create,
        always,
        lambda clients, _, values: clients.ec2.delete_route(
            **given(values, RouteTableId="routeTableId", DestinationCidrBlock="destinationCidrBlock")
        ),
    ),
    "aws:ec2/routeTableAssociation:RouteTableAssociation": Kind(
        association_create,
        always,
        lambda clients, id, _: clients.ec2.disassociate_route_table(AssociationId=id),
    ),
    "aws:ec2/vpcEndpoint:VpcEndpoint": ec2(
        "vpc-endpoint", "vpc_endpoint", "vpc_endpoints", "VpcEndpointIds", ("VpcEndpoint", "VpcEndpointId"),
        ("delete_vpc_endpoints", "VpcEndpointIds"), VpcId="vpcId", ServiceName="serviceName",
        VpcEndpointType="vpcEndpointType", RouteTableIds="routeTableIds",
    ),
    "aws:ec2/securityGroup:SecurityGroup": Kind(
        group_create,
        lambda clients, id, _: clients.ec2.describe_security_groups(GroupIds=[id])["SecurityGroups"],
        lambda clients, id, _: clients.ec2.delete_security_group(GroupId=id),
        named="name",
    ),
    "aws:vpc/securityGroupIngressRule:SecurityGroupIngressRule": rule("ingress"),
    "aws:vpc/securityGroupEgressRule:SecurityGroupEgressRule": rule("egress"),
    "aws:ec2/networkInterface:NetworkInterface": Kind(
        interface_create,
        lambda clients, id, _: clients.ec2.describe_network_interfaces(NetworkInterfaceIds=[id])["NetworkInterfaces"],
        interface_delete,
    ),
    "aws:ec2/instance:Instance": Kind(
        instance_create,
        instance_find,
        instance_delete,
    ),
    "aws:ebs/volume:Volume": ec2(
        "volume", "volume", "volumes", "VolumeIds", ("", "VolumeId"), ("delete_volume", "VolumeId"),
        AvailabilityZone="availabilityZone", Size="size", Encrypted="encrypted", KmsKeyId="kmsKeyId", VolumeType="type",
    ),
    "aws:ec2/volumeAttachment:VolumeAttachment": Kind(
        attachment_create,
        always,
        lambda clients, _, values: clients.ec2.detach_volume(
            **given(values, Device="deviceName", VolumeId="volumeId", InstanceId="instanceId")
        ),
    ),
    "aws:ec2/ami:Ami": Kind(
        image_create,
        lambda clients, id, _: clients.ec2.describe_images(ImageIds=[id])["Images"],
        image_delete,
        named="name",
    ),
    "aws:iam/role:Role": Kind(
        role_create,
        lambda clients, id, _: clients.iam.get_role(RoleName=id),
        lambda clients, id, _: clients.iam.delete_role(RoleName=id),
        named="name",
    ),
    "aws:iam/rolePolicy:RolePolicy": Kind(
        policy_create,
        lambda clients, _, values: clients.iam.get_role_policy(RoleName=values["role"], PolicyName=values["name"]),
        lambda clients, _, values: clients.iam.delete_role_policy(RoleName=values["role"], PolicyName=values["name"]),
        named="name",
        updatable=frozenset({"policy"}),
        change=lambda clients, _, values: policy_create(clients, values),
    ),
    "aws:iam/instanceProfile:InstanceProfile": Kind(
        profile_create,
        lambda clients, id, _: clients.iam.get_instance_profile(InstanceProfileName=id),
        profile_delete,
        named="name",
    ),
    "aws:route53/zone:Zone": Kind(
        zone_create,
        lambda clients, id, _: clients.route53.get_hosted_zone(Id=id),
        lambda clients, id, _: clients.route53.delete_hosted_zone(Id=id),
    ),
    "aws:route53/record:Record": Kind(
        record("CREATE"),
        always,
        lambda clients, _, values: record("DELETE")(clients, values),
    ),
    "aws:s3/bucket:Bucket": Kind(
        bucket_create,
        lambda clients, id, _: clients.s3.head_bucket(Bucket=id),
        bucket_delete,
        named="bucket",
    ),
    "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock": Kind(
        access_create,
        lambda clients, id, _: clients.s3.get_public_access_block(Bucket=id),
        lambda clients, id, _: clients.s3.delete_public_access_block(Bucket=id),
    ),
    "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration": Kind(
        encryption_create,
        always,
        lambda clients, id, _: clients.s3.delete_bucket_encryption(Bucket=id),
    ),
}  # fmt: skip
"""Pulumi's name of each type."""
