"""What the two programs are asked for, and what an environment gives to its mounts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from infra.aws.api import AwsOutputs, AwsRequest
from livemount.boot.api import BOOT_URL
from livemount.core.errors import CorruptError, NotFoundError
from livemount.core.machine import HOLD_SECONDS, NAME_PATTERN, Frozen, HoldSeconds, MachineDescription
from livemount.core.quota import RECALL_QUOTA, QuotaText
from livemount.core.settings import EnvironmentPaths, Settings


class EnvironmentRequest(Frozen):
    """One environment: its name, where its files are, what it is made of."""

    name: str = Field(pattern=NAME_PATTERN)
    home: Path
    """The home folder; all of the environment lies in HOME/NAME (`EnvironmentPaths`)."""
    cloud: str = "local"
    cidr: str = "10.77.0.0/24"
    host_address: str = "10.77.0.2"
    """The live-mount host's address on the guests' network."""
    boot_url: str = BOOT_URL
    guest_tools: Path
    """The unpacked tools of guest preparation."""
    recall_quota: QuotaText = RECALL_QUOTA
    """Room of all recall stores of the live-mount host."""
    keep_recall_stores: bool = False
    """Whether they stay for the next mount of the same copy."""
    variables: dict[str, str] = Field(default_factory=dict)
    """More environment variables for the services: where repository and catalog are. No secrets."""
    ipxe: Path
    """The folder of the iPXE binaries."""
    aws: AwsRequest | None = None
    """What the cloud `aws` needs to know."""

    @property
    def paths(self) -> EnvironmentPaths:
        """Where its files are."""
        return EnvironmentPaths(self.name, self.home / self.name)

    @staticmethod
    def of(settings: Settings, name: str | None = None) -> EnvironmentRequest:
        """The environment that the settings name, or another one of the same home, with the usual values."""
        name = name or settings.environment
        return EnvironmentRequest(
            name=name,
            home=settings.home,
            guest_tools=settings.cache / "guest-tools",
            ipxe=settings.cache / "ipxe",
            recall_quota=settings.recall_quota,
            keep_recall_stores=settings.keep_recall_stores,
            variables=settings.service_variables,
        )


class EnvironmentOutputs(Frozen):
    """What an environment gives to its mounts: the content of `EnvironmentPaths.outputs`. Holds no secret."""

    name: str
    cloud: str
    endpoint: str
    """The live-mount host's API."""
    token_file: Path
    ca_file: Path | None = None
    host_address: str
    boot_url: str
    network: str
    image: Path
    image_digest: str
    cloud_folder: Path | None = None
    """The local cloud's folder."""
    aws: AwsOutputs | None = None
    """What the cloud `aws` has."""

    @staticmethod
    def load(paths: EnvironmentPaths) -> EnvironmentOutputs:
        """What the environment's stack has exported. Raises `NotFoundError` when it is not up."""
        try:
            return EnvironmentOutputs.model_validate_json(paths.outputs.read_text())
        except FileNotFoundError as error:
            raise NotFoundError(
                f"the environment {paths.name} is not up", hint="`livemount environment up` (or `pulumi up`) makes it"
            ) from error
        except ValueError as error:
            raise CorruptError(
                f"{paths.outputs} is not what an environment exports", hint="`livemount environment up` writes it anew"
            ) from error


class MountRequest(Frozen):
    """One mount: which copy, as which machine. Holds no secret."""

    mount: str = Field(pattern=NAME_PATTERN)
    source: str
    """The disk that the machine starts from, as `livemount.media.open_source` takes it."""
    disks: tuple[str, ...] = ()
    """All disks of a machine of several, in its order."""
    password_file: Path | None = None
    machine: MachineDescription = MachineDescription()
    prepare: bool = True
    profile: str | None = Field(default=None, pattern=NAME_PATTERN)
    """Name of the boot profile: the machine's, so that a mount learns from those of earlier copies."""
    hold_seconds: HoldSeconds = HOLD_SECONDS
