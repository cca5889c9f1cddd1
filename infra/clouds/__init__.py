"""The clouds, one a file. A new one is a new file and a line in `CLOUDS`."""

from __future__ import annotations

from importlib import import_module

from infra.clouds.base import Cloud
from livemount.core.errors import UnsupportedError

CLOUDS = {"aws": "AwsCloud", "local": "LocalCloud"}
"""The class of each cloud, in the file of its name: loaded when it is asked for, as SDKs of clouds are big."""


def cloud(name: str) -> Cloud:
    """The cloud of this name. Raises `UnsupportedError`."""
    if name not in CLOUDS:
        raise UnsupportedError(f"there is no cloud {name!r}", hint="known are " + ", ".join(sorted(CLOUDS)))
    try:
        module = import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("pulumi_"):
            raise
        raise UnsupportedError(
            f"the SDK of {name} is not installed", hint=f"pip install 'livemount[{name}]'"
        ) from error
    found: Cloud = getattr(module, CLOUDS[name])()
    return found
