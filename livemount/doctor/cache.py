"""Whether the cache holds what the set-up makes: the Pulumi CLI, iPXE binaries, tools for guests."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.doctor.api import check
from livemount.doctor.programs import find_program

IPXE = ("ipxe.lkrn", "ipxe.efi")
GUEST_TOOLS = ("busybox", "base.cpio.gz")


@check("Pulumi CLI")
def pulumi() -> str:
    """The engine; its version must not be older than the Python package's."""
    found = find_program("pulumi", Settings().cache / "pulumi-bin")
    if found is None:
        raise LivemountError("pulumi is not installed", hint="run `make setup`")
    said = run(found, "version", timeout=60).stdout.strip().lstrip("v")
    if said and _numbers(said) < _numbers(version("pulumi")):
        raise LivemountError(
            f"{found} is {said}, older than the Python package ({version('pulumi')})",
            hint="run `make setup` after removing it, or update it",
        )
    return f"{found} {said or '(a build that does not tell its version)'}"


@check("Pulumi language host for Python")
def language_host() -> str:
    """Runs the Python programs of stacks."""
    found = find_program("pulumi-language-python", Settings().cache / "pulumi-bin")
    if found is None:
        raise LivemountError("pulumi-language-python is not installed", hint="run `make setup`")
    return found


@check("iPXE binaries")
def ipxe() -> str:
    """What the machine image boots."""
    return _files(Settings().cache / "ipxe", IPXE, "ipxe")


@check("tools for guests")
def guest_tools() -> str:
    """What guest preparation puts into initrds."""
    return _files(Settings().cache / "guest-tools", GUEST_TOOLS, "guest")


def _files(folder: Path, names: tuple[str, ...], step: str) -> str:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise LivemountError(f"not in {folder}: {', '.join(missing)}", hint=f"run `make setup`, or: setup/run {step}")
    return str(folder)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
