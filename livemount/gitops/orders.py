"""The order of a mount, from what a file or the command line says of it."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from livemount.core.machine import Copy
from livemount.core.settings import Settings
from livemount.gitops.spec import MountSpec
from livemount.media.agents import AgentUri
from livemount.media.foreign import Wanted, copy_of_sources
from livemount.workflow.states import Declared, MountOrder

FindCopy = Callable[[Settings, str], Copy]
"""The copy that `NAME`, `NAME@latest` or `NAME@ID` names; raises `NotFoundError` and the like."""


@dataclass(frozen=True)
class Origin:
    """What is mounted: a copy, or sources with what is said of their machine."""

    copy: str | None
    sources: tuple[str, ...]
    password_file: Path | None
    wanted: Wanted


def look(settings: Settings, origin: Origin, name: str, find: FindCopy) -> tuple[Copy, Path | None]:
    """The copy, or one that describes the sources as the machine `name`; and the file with its secret.

    Raises what opening and reading raise.
    """
    if origin.copy is not None:
        secret = None if settings.agent else settings.repository_password
        return find(settings, origin.copy), secret and secret.absolute()
    shown = settings.client_certificates
    uris = [str(AgentUri.parse(uri, shown)) if uri.startswith("agent:") else uri for uri in origin.sources]
    secret = origin.password_file
    return copy_of_sources(uris, secret, name, origin.wanted), secret and secret.absolute()


def order_of(
    settings: Settings, spec: MountSpec, find: FindCopy, expires: datetime, declared: Declared | None
) -> MountOrder:
    """The order of a mount that a file describes. Raises what `look` raises."""
    wanted = Wanted(spec.firmware, spec.cpus, spec.memory_mib)
    found, secret = look(settings, Origin(spec.copy_, spec.sources, spec.password_file, wanted), spec.name, find)
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
