"""`livemount:index:PseudoDisk`: a mount on the live-mount host, with its stores, target and boot script."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import override

from livemount.core.errors import NotFoundError
from livemount.core.machine import HOLD_SECONDS, Firmware, HoldSeconds
from livemount.host.api import PseudoDisk as HostDisk
from livemount.host.api import PseudoDiskRequest
from livemount.host.client import HostClient
from livemount.provider.resource import Inputs, Resource, Values


class PseudoDiskInputs(Inputs):
    """Which host, and what it is asked for (`PseudoDiskRequest`). Secrets are named by their files."""

    endpoint: str
    token_file: Path
    ca_file: Path | None = None
    """The CA of the host's certificate, for an endpoint of HTTPS."""
    mount: str
    source: str
    disks: tuple[str, ...] = ()
    password_file: Path | None = None
    address: str
    firmware: Firmware = Firmware.BIOS
    prepare: bool = True
    profile: str | None = None
    hold_seconds: HoldSeconds = HOLD_SECONDS

    def client(self) -> HostClient:
        """A client of the host."""
        return HostClient(self.endpoint, self.token_file, self.ca_file)

    def request(self) -> PseudoDiskRequest:
        """What the host is asked for."""
        return PseudoDiskRequest(
            source=self.source,
            disks=self.disks,
            password_file=self.password_file,
            address=self.address,
            firmware=self.firmware,
            prepare=self.prepare,
            profile=self.profile,
            hold_seconds=self.hold_seconds,
        )


def _outputs(disk: HostDisk) -> Values:
    report = None if disk.report is None else disk.report.model_dump(mode="json")
    return {
        "portal": disk.portal,
        "targetIqn": disk.target_iqn,
        "initiatorIqn": disk.initiator_iqn,
        "size": disk.size,
        "report": report,
        "healthy": disk.healthy,
    }


class PseudoDisk(Resource[PseudoDiskInputs]):
    """A disk that is recalled from a copy on demand, exported to one guest."""

    token = "livemount:index:PseudoDisk"  # noqa: S105
    inputs = PseudoDiskInputs

    @override
    def id(self, inputs: PseudoDiskInputs) -> str:
        """The mount's name."""
        return inputs.mount

    @override
    def create(self, inputs: PseudoDiskInputs) -> Values:
        """Make stores, prepare the guest, export, publish the boot script."""
        with inputs.client() as host:
            return _outputs(host.put_pseudo_disk(inputs.mount, inputs.request()))

    @override
    def read(self, inputs: PseudoDiskInputs, outputs: Values) -> Values | None:
        """Whether the host has it; another mount's request under this name is not ours, so ours is gone."""
        with inputs.client() as host:
            try:
                disk = host.get_pseudo_disk(inputs.mount)
            except NotFoundError:
                return None
        return _outputs(disk) if disk.request == inputs.request() else None

    @override
    def delete(self, inputs: PseudoDiskInputs, outputs: Values) -> None:
        """Take target, script and stores away."""
        with inputs.client() as host:
            host.delete_pseudo_disk(inputs.mount)

    @override
    def drifted(self, inputs: PseudoDiskInputs, outputs: Values) -> list[str]:
        """A disk whose target is missing is brought back by asking for it again."""
        return [] if outputs.get("healthy", True) else ["healthy"]
