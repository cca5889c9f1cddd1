"""A manager's service whose mounts have no stacks, and run once asked for: `python -m tests.support.manager`."""

from __future__ import annotations

import logging
from typing import Any

from livemount.core.settings import Settings
from livemount.manager.service import serve
from livemount.workflow.states import MountOrder


class NoStacks:
    """Nothing is made."""

    def up(self, order: MountOrder) -> dict[str, Any]:
        """Nothing to make."""
        return {"mount": order.mount}

    def destroy(self, mount: str) -> None:
        """Nothing to take away."""

    def is_up(self, order: MountOrder) -> bool:
        """At once."""
        return order.prepare

    def console_tail(self, outputs: dict[str, Any]) -> str:
        """There is no console."""
        return str(outputs)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    serve(Settings(), NoStacks())
