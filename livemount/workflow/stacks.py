"""The mounts' stacks as the durable workflow needs them, on Pulumi."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.api import EnvironmentOutputs, MountRequest
from livemount.core.machine import is_name
from livemount.core.settings import Settings
from livemount.host.api import EventKind
from livemount.host.client import HostClient
from livemount.workflow.stack import MountStack
from livemount.workflow.states import MountOrder

TAIL = 2000
"""Bytes of a console that a message quotes."""


class PulumiStacks:
    """One Pulumi stack a mount (`livemount.workflow.mount.Stacks`)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paths = settings.paths()

    def up(self, order: MountOrder) -> dict[str, Any]:
        """Make the mount's stack and return its outputs."""
        request = MountRequest(
            mount=order.mount,
            source=order.copy_.source,
            disks=tuple(order.copy_.sources) if len(order.copy_.sources) > 1 else (),
            password_file=order.password_file,
            machine=order.copy_.description,
            prepare=order.prepare,
            # A machine whose name cannot be a file's just has no boot profile.
            profile=order.copy_.name if is_name(order.copy_.name) else None,
            hold_seconds=order.hold_seconds,
        )
        return MountStack(self._paths, self._settings, order.mount).up(request)

    def destroy(self, mount: str) -> None:
        """Take the mount's stack away, and what no state knows of it."""
        MountStack(self._paths, self._settings, mount).destroy()

    def is_up(self, order: MountOrder) -> bool:
        """Whether the guest has asked for `/up`. Raises when the mount is not on its host any more."""
        outputs = EnvironmentOutputs.load(self._paths)
        with HostClient(outputs.endpoint, outputs.token_file, outputs.ca_file) as host:
            host.get_pseudo_disk(order.mount)
            return any(event.kind is EventKind.GUEST_UP for event in host.events(order.mount).events)

    def console_tail(self, outputs: dict[str, Any]) -> str:
        """The last lines of the guest's console; `outputs` are the stack's."""
        log = outputs.get("consoleLog")
        if not log or not Path(log).is_file():
            return ""
        with Path(log).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            return file.read().decode(errors="replace")
