"""`livemount:index:HostConfiguration`: the live-mount host's services, laid out by the Ansible roles."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from typing_extensions import override

from livemount.configure.api import HostSpec, check, configure, remove, roles_digest
from livemount.core.quota import RECALL_QUOTA, QuotaText
from livemount.core.secrets import secret_file
from livemount.provider.resource import Inputs, Resource, Values


class HostConfigurationInputs(Inputs):
    """See `HostSpec`."""

    environment: str
    home: Path
    """The home folder; the host's own is `HOME/ENVIRONMENT/host`."""
    namespace: str | None = None
    address: str
    token_file: Path
    guest_tools: Path
    recall_quota: QuotaText = RECALL_QUOTA
    keep_recall_stores: bool = False
    variables: dict[str, str] = Field(default_factory=dict)

    def spec(self) -> HostSpec:
        """What the roles are run with."""
        return HostSpec(
            environment=self.environment,
            home=self.home,
            namespace=self.namespace,
            address=self.address,
            token_file=self.token_file,
            guest_tools=self.guest_tools,
            recall_quota=self.recall_quota,
            keep_recall_stores=self.keep_recall_stores,
            variables=self.variables,
        )


class HostConfiguration(Resource[HostConfigurationInputs]):
    """A host as the roles make it.

    A host that is not as configured is never "gone": a later `up` configures it again, and a destroy still removes it.
    """

    token = "livemount:index:HostConfiguration"  # noqa: S105
    inputs = HostConfigurationInputs
    updatable = frozenset({"address", "tokenFile", "guestTools", "recallQuota", "keepRecallStores", "variables"})

    @override
    def id(self, inputs: HostConfigurationInputs) -> str:
        """The host's folder."""
        return str(inputs.spec().host.root)

    @override
    def create(self, inputs: HostConfigurationInputs) -> Values:
        """Run the roles. The API's token is made before, where there is none."""
        secret_file(inputs.token_file)
        spec = inputs.spec()
        configure(spec)
        return {
            "endpoint": f"unix://{spec.host.api_socket}",
            "rolesDigest": roles_digest(),
            "configured": True,
        }

    @override
    def read(self, inputs: HostConfigurationInputs, outputs: Values) -> Values | None:
        """Whether the host is as configured; `None` before it has been."""
        return {**outputs, "configured": check(inputs.spec())} if outputs else None

    @override
    def delete(self, inputs: HostConfigurationInputs, outputs: Values) -> None:
        """Undo the roles, and delete the token."""
        remove(inputs.spec())
        inputs.token_file.unlink(missing_ok=True)

    @override
    def drifted(self, inputs: HostConfigurationInputs, outputs: Values) -> list[str]:
        """Roles that have changed since, or a host that is no more as they made it."""
        drifted = [] if outputs.get("rolesDigest") == roles_digest() else ["rolesDigest"]
        return drifted if outputs.get("configured") else [*drifted, "configured"]
