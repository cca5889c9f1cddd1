"""The program of `pulumi up`: the environment that the stack names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
from pydantic import ValidationError
from pydantic.alias_generators import to_pascal

from infra.api import EnvironmentRequest
from infra.aws.api import AwsRequest
from infra.environment import environment_program
from livemount.core.settings import Settings

LISTS = ("client_cidrs", "source_keys", "source_buckets", "tags")
"""Fields of `AwsRequest` that are lists in the settings; tags as `KEY=VALUE`."""


def main() -> None:
    """Read the stack's configuration; what it does not say is as usual."""
    request = EnvironmentRequest.of(Settings(), pulumi.get_stack())
    config = pulumi.Config()
    texts = {
        field: value
        for field, key in (
            ("cloud", "cloud"),
            ("cidr", "cidr"),
            ("host_address", "hostAddress"),
            ("recall_quota", "recallQuota"),
            ("keep_recall_stores", "keepRecallStores"),
        )
        if (value := config.get(key)) is not None
    }
    folders = {
        field: Path(value)
        for field, key in (("guest_tools", "guestTools"), ("ipxe", "ipxe"))
        if (value := config.get(key)) is not None
    }
    clouds = {"aws": aws_settings(config)} if texts.get("cloud") == "aws" else {}
    try:
        request = EnvironmentRequest.model_validate({**request.model_dump(), **texts, **folders, **clouds})
    except ValidationError as error:
        wrong = [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
        raise pulumi.RunError("the stack's settings are wrong: " + "; ".join(wrong)) from None
    environment_program(request)


def aws_settings(config: pulumi.Config) -> dict[str, Any]:
    """The settings of AWS that the stack has, by the fields of `AwsRequest`."""
    found: dict[str, Any] = {}
    for field in AwsRequest.model_fields:
        key = f"aws{to_pascal(field)}"
        value = config.get_object(key) if field in LISTS else config.get(key)
        if value not in (None, "", []):  # the last two: what Pulumi.yaml has as default
            found[field] = value
    if "tags" in found:
        found["tags"] = dict(tag.partition("=")[::2] for tag in found["tags"])
    return found


main()
