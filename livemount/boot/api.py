"""What the LM host asks of the boot server: to answer one address at the fixed URL, and to tell who asked."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Protocol

from pydantic import Field

from livemount.core.machine import Firmware, Frozen
from livemount.target.api import LUN, Chap

BOOT_NAME = "boot.livemount.internal"
"""The name in the fixed URL; the network's DNS answers it with the LM host's address."""
BOOT_URL = f"http://{BOOT_NAME}/boot"
"""The fixed URL that the machine image asks: answered by the asking address with an iPXE script."""
UP_PATH = "/up"
"""A guest that has reached multi-user asks for this path on the LM host (see `livemount.guest`)."""


class BootScript(Frozen):
    """What one guest needs to boot from its target."""

    mount: str
    address: str
    """Address of the guest: the only one that gets this script."""
    portal: str
    """Address of the iSCSI portal (port 3260)."""
    target_iqn: str
    initiator_iqn: str
    chap: Chap
    firmware: Firmware
    lun: int = Field(default=LUN, ge=1, le=255)
    """The disk to boot from."""


class RequestKind(StrEnum):
    """What a guest asked the boot server for."""

    SCRIPT = "script"
    UP = "up"


class Request(Frozen):
    """One request of a guest, from the access log."""

    time: datetime
    address: str
    kind: RequestKind
    status: int


class BootServer(Protocol):
    """The boot server of this host. Every call is idempotent."""

    def publish(self, script: BootScript) -> None:
        """Answer the script's address with it from now on."""

    def withdraw(self, address: str) -> None:
        """Answer this address with 404 from now on; the script's file (it holds the secret) is gone."""

    def published(self) -> list[str]:
        """The addresses that have a script."""

    def requests(self, address: str, since: datetime) -> list[Request]:
        """What this address asked for at or after `since`, oldest first."""
