"""What a live-mount host may do in AWS: read what it mounts, fetch its own set-up. Plain data, no Pulumi."""

from __future__ import annotations

import json
from typing import Any

from infra.aws.api import AwsRequest

ASSUME = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}],
    }
)
"""Machines may take the role."""
CODE_PREFIX = "host/"
"""Where in the environment's bucket the host's code lies."""


def parameter_path(environment: str) -> str:
    """Where in the Parameter Store the host's secrets lie."""
    return f"/livemount/{environment}"


def partition(region: str) -> str:
    """The first part of ARNs in a region."""
    known = {"cn-": "aws-cn", "us-gov-": "aws-us-gov"}
    return next((name for start, name in known.items() if region.startswith(start)), "aws")


def host_policy(request: AwsRequest, environment: str, bucket: str) -> str:
    """The policy of the live-mount host's role, as JSON; `bucket` is the environment's own."""
    arn = f"arn:{partition(request.region)}"
    statements: list[dict[str, Any]] = [
        {
            "Sid": "ReadSnapshots",
            "Effect": "Allow",
            "Action": ["ebs:GetSnapshotBlock", "ebs:ListChangedBlocks", "ebs:ListSnapshotBlocks"],
            "Resource": f"{arn}:ec2:{request.region}::snapshot/*",
        },
        # It knows no resources: all or none can be listed.
        {"Sid": "ListSnapshots", "Effect": "Allow", "Action": "ec2:DescribeSnapshots", "Resource": "*"},
        {
            "Sid": "OwnCode",
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": f"{arn}:s3:::{bucket}/{CODE_PREFIX}*",
        },
        {
            "Sid": "OwnSecrets",
            "Effect": "Allow",
            "Action": "ssm:GetParameter",
            "Resource": f"{arn}:ssm:{request.region}:*:parameter{parameter_path(environment)}/*",
        },
    ]
    if request.source_buckets:
        statements += [
            {
                "Sid": "ReadObjects",
                "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:GetObjectVersion"],
                "Resource": [f"{arn}:s3:::{name}/*" for name in request.source_buckets],
            },
            {
                "Sid": "ListObjects",
                "Effect": "Allow",
                "Action": "s3:ListBucket",
                "Resource": [f"{arn}:s3:::{name}" for name in request.source_buckets],
            },
        ]
    if request.source_keys:
        statements.append(
            {"Sid": "Decrypt", "Effect": "Allow", "Action": "kms:Decrypt", "Resource": list(request.source_keys)}
        )
    return json.dumps({"Version": "2012-10-17", "Statement": statements})
