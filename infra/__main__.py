"""The program of `pulumi up`: the environment that the stack names."""

from __future__ import annotations

from pathlib import Path

import pulumi

from infra.api import EnvironmentRequest
from infra.environment import environment_program
from livemount.core.settings import Settings


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
    environment_program(EnvironmentRequest.model_validate({**request.model_dump(), **texts, **folders}))


main()
