"""What all parts have in common: names, tags, and the provider that makes them."""

from __future__ import annotations

from collections.abc import Mapping

import pulumi
import pulumi_aws as aws

from infra.aws.api import TAG


class Maker:
    """Gives each resource of an environment its name, tags and options."""

    def __init__(self, environment: str, region: str, tags: Mapping[str, str], opts: pulumi.ResourceOptions) -> None:
        provider = aws.Provider("aws", region=region, opts=opts)
        self.region = region
        self.prefix = f"livemount-{environment}"
        self._tags = {**tags, TAG: environment}
        self._opts = pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(provider=provider))

    def tags(self, name: str) -> dict[str, str]:
        """The tags of the resource `name`."""
        return {**self._tags, "Name": f"{self.prefix}-{name}"}

    @property
    def shared_tags(self) -> dict[str, str]:
        """The tags that everything has."""
        return dict(self._tags)

    def opts(self, **more: object) -> pulumi.ResourceOptions:
        """The options of a resource."""
        return pulumi.ResourceOptions.merge(self._opts, pulumi.ResourceOptions(**more))  # type: ignore[arg-type]

    def below(self, parent: pulumi.Resource) -> Maker:
        """The same, for the resources of a component."""
        maker = object.__new__(Maker)
        maker.__dict__.update(self.__dict__)
        maker._opts = pulumi.ResourceOptions.merge(self._opts, pulumi.ResourceOptions(parent=parent))
        return maker
