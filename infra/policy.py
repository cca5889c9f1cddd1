"""What no environment or mount in AWS may be: open to the public, unencrypted, untagged.

`pulumi stack export | python -m infra.policy` checks a stack, and ends with 1 when something is wrong. A check of the
resources themselves, which needs no service and no plug-in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

from infra.aws.api import PRIVATE, TAG

UNTAGGED = frozenset(
    (
        "aws:ec2/route:Route",
        "aws:ec2/routeTableAssociation:RouteTableAssociation",
        "aws:ec2/volumeAttachment:VolumeAttachment",
        "aws:iam/rolePolicy:RolePolicy",
        "aws:route53/record:Record",
        "aws:s3/bucketPublicAccessBlock:BucketPublicAccessBlock",
        "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration",
    )
)
"""Types that AWS knows no tags of."""
CLOSED = ("blockPublicAcls", "blockPublicPolicy", "ignorePublicAcls", "restrictPublicBuckets")
ENCRYPTION = "aws:s3/bucketServerSideEncryptionConfiguration:BucketServerSideEncryptionConfiguration"

Resource = Mapping[str, Any]


def violations(resources: Sequence[Resource]) -> list[str]:
    """What is wrong with the resources of a stack (as `pulumi stack export` has them), one line each."""
    found: list[str] = []
    for resource in resources:
        if not str(resource["type"]).startswith("aws:"):
            continue
        name = f"{resource['type'].rpartition(':')[2]} {resource['urn'].rpartition('::')[2]}"
        found += [f"{name}: {reason}" for reason in _of(resource, resource.get("inputs") or {}, resources)]
    return found


def _of(resource: Resource, inputs: Mapping[str, Any], all_resources: Sequence[Resource]) -> Iterator[str]:
    kind = str(resource["type"])
    if kind not in UNTAGGED and not {TAG, "Name"} <= set(inputs.get("tags") or {}):
        yield f"has not the tags {TAG} and Name"
    match kind.rpartition(":")[2]:
        case "SecurityGroup":
            if inputs.get("ingress"):
                yield "has rules of its own, which are not checked: each rule is a resource"
        case "SecurityGroupIngressRule":
            if inputs.get("cidrIpv6") or inputs.get("prefixListId") or _is_public(inputs.get("cidrIpv4")):
                yield "lets the public in"
        case "Subnet":
            if inputs.get("mapPublicIpOnLaunch", False):
                yield "gives public addresses"
        case "Eip":
            if inputs.get("instance") or inputs.get("networkInterface"):
                yield "is a machine's public address"
        case "Instance":
            if inputs.get("associatePublicIpAddress"):
                yield "has a public address"
            if (inputs.get("metadataOptions") or {}).get("httpTokens") != "required":
                yield "answers IMDSv1"
            if not (inputs.get("rootBlockDevice") or {}).get("encrypted"):
                yield "its root disk is not encrypted"
            if any(not disk.get("encrypted") for disk in inputs.get("ebsBlockDevices") or ()):
                yield "a disk is not encrypted"
            if inputs.get("keyName"):
                yield "has a key for ssh"
        case "Volume":
            if not inputs.get("encrypted"):
                yield "is not encrypted"
        case "Bucket":
            others = [other for other in all_resources if (other.get("inputs") or {}).get("bucket") == resource["id"]]
            if not any(other["type"] == ENCRYPTION for other in others):
                yield "is not encrypted"
            if not any(all(other["inputs"].get(name) for name in CLOSED) for other in others):
                yield "is not closed to the public"
        case "RolePolicy":
            for statement in json.loads(inputs["policy"])["Statement"]:
                actions = statement["Action"]
                if any("*" in action for action in ([actions] if isinstance(actions, str) else actions)):
                    yield f"allows {actions}"


def _is_public(cidr: str | None) -> bool:
    return cidr is not None and not any(IPv4Network(cidr).subnet_of(private) for private in PRIVATE)


def main() -> None:
    """Check the stack on the input."""
    found = violations(json.load(sys.stdin)["deployment"].get("resources", []))
    print("\n".join(found) or "all as it should be")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
