"""The environment as the command line sees it: up, down, what it consists of, what its live-mount host serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infra.api import EnvironmentOutputs
from livemount.core.machine import Copy, Firmware
from livemount.core.settings import Settings
from livemount.host.api import Inspection, InspectionRequest, PseudoDisk
from livemount.host.client import TIMEOUT, HostClient
from livemount.workflow.stack import EnvironmentStack


def host_client(outputs: EnvironmentOutputs) -> HostClient:
    """A client of the environment's live-mount host."""
    return HostClient(outputs.endpoint, outputs.token_file, outputs.ca_file)


class Environment:
    """The environment that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = settings.paths()

    def up(self, say: Callable[[str], None]) -> None:
        """Make the environment, or bring it to what is asked for; `say` gets a line for each thing that happens."""
        self._stack().up(on_event=lambda event: say(str(event)))

    def down(self, say: Callable[[str], None]) -> None:
        """Take the environment away. Raises `ConflictError` while there are mounts."""
        self._stack().destroy(on_event=lambda event: say(str(event)))

    def _stack(self) -> EnvironmentStack:
        return EnvironmentStack(self._paths, self._settings)

    def outputs(self) -> EnvironmentOutputs:
        """What the environment consists of. Raises `NotFoundError` when it is not up."""
        return EnvironmentOutputs.load(self._paths)

    def disks(self, timeout: float = TIMEOUT) -> dict[str, PseudoDisk]:
        """What the live-mount host serves, by mount. It has `timeout` seconds to answer."""
        with host_client(self.outputs()) as host:
            return {disk.mount: disk for disk in host.list_pseudo_disks(timeout)}

    def inspect(self, copy: Copy, firmware: Firmware, password_file: Path | None) -> Inspection:
        """What a mount of a copy would change in the guest, and whether it would boot; nothing is mounted."""
        disks = tuple(copy.sources)
        request = InspectionRequest(
            source=copy.source, disks=disks if len(disks) > 1 else (), password_file=password_file, firmware=firmware
        )
        with host_client(self.outputs()) as host:
            return host.inspect(request)
