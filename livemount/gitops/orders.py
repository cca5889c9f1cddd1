"""The order of a mount, from what a file or the command line says of it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from livemount.core.machine import Copy
from livemount.core.settings import Settings
from livemount.gitops.spec import MountSpec
from livemount.media.foreign import Wanted
from livemount.workflow.states import Declared, MountOrder

FindCopy = Callable[[Settings, str, list[str] | None, str, Path | None, Wanted], tuple[Copy, Path | None]]
"""`livemount.cli.copies.chosen_copy`: the copy of a reference, or of sources, and the file with its secret."""


def order_of(
    settings: Settings, spec: MountSpec, find: FindCopy, expires: datetime, declared: Declared | None
) -> MountOrder:
    """The order of a mount that a file describes. Raises what looking for its copy, or at its sources, raises."""
    wanted = Wanted(spec.firmware, spec.cpus, spec.memory_mib)
    found, secret = find(settings, spec.copy_ or "", list(spec.sources), spec.name, spec.password_file, wanted)
    return MountOrder(
        mount=spec.name,
        copy=found,
        password_file=secret,
        expires=expires,
        boot_timeout=spec.boot_timeout.seconds,
        prepare=spec.prepare,
        hold_seconds=spec.hold_io.seconds,
        owner=owner(),
        declared=declared,
    )


def owner() -> str:
    """Who runs this: not a proof of anything, but the name by which a limit for each user counts."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return str(os.getuid())
