"""What the LM host asks of an iSCSI target. One back end a file: `tgt` (everywhere), later `lio`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import Field

from livemount.core.machine import Frozen

IQN_PREFIX = "iqn.2026-01.internal.livemount"
LUN = 1
"""tgt's LUN 0 is its controller; the first disk is LUN 1, the next LUN 2 and so on."""


def target_iqn(mount: str) -> str:
    """The IQN of a mount's target."""
    return f"{IQN_PREFIX}:{mount}"


def initiator_iqn(mount: str) -> str:
    """The IQN that a mount's guest must log in with."""
    return f"{IQN_PREFIX}:{mount}.guest"


class Chap(Frozen):
    """CHAP credentials of one mount; the secret stays out of `repr`."""

    user: str
    secret: str = Field(repr=False)


class TargetSpec(Frozen):
    """One target with a machine's disks, for one initiator at one address."""

    mount: str
    backing_file: Path
    """The disk of LUN 1."""
    further_files: tuple[Path, ...] = ()
    """The disks of the LUNs after it."""
    initiator_address: str
    """Where the initiator is; a back end that cannot check it leaves that to the host's watch."""
    chap: Chap

    @property
    def luns(self) -> dict[int, Path]:
        """The file of each LUN."""
        return dict(enumerate((self.backing_file, *self.further_files), start=LUN))


class Session(Frozen):
    """An initiator that is logged in."""

    initiator: str
    address: str


class Target(Protocol):
    """The iSCSI target of this host. Every call is idempotent."""

    def create(self, spec: TargetSpec) -> None:
        """Export the files. A target of the mount that differs (or is half made) is made anew."""

    def delete(self, mount: str) -> None:
        """Close its sessions and take the target away; returns when the backing files are closed."""

    def exists(self, mount: str) -> bool:
        """Whether the target is there with its LUNs online."""

    def sessions(self, mount: str) -> list[Session]:
        """Who is logged in; empty when there is no such target."""

    def disconnect(self, mount: str) -> None:
        """Close its sessions and leave the target: an initiator that is alive logs in again by itself."""

    def mounts(self) -> list[str]:
        """The mounts that have a target here."""
