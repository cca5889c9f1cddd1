"""Whether the cache holds what the set-up makes: the Pulumi CLI, iPXE binaries, tools for guests."""

from __future__ import annotations

import re
from importlib.metadata import version

from livemount.core.errors import LivemountError
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.doctor.api import check
from livemount.doctor.programs import find_program
from livemount.guest.tools import GuestTools
from livemount.image import ipxe


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
def ipxe_binaries() -> str:
    """What the machine image boots."""
    folder = ipxe.default_folder()
    if not ipxe.is_complete(folder):
        raise LivemountError(f"they are not in {folder}", hint="run `make setup`, or: setup/run ipxe")
    return str(folder)


@check("tools for guests")
def guest_tools() -> str:
    """What guest preparation puts into initrds."""
    tools = GuestTools.default()
    tools.check()
    return str(tools.folder)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
