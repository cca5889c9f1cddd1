"""The clouds, one a file. A new one is a new file and a line in `CLOUDS`."""

from __future__ import annotations

from infra.clouds.base import Cloud
from infra.clouds.local import LocalCloud
from livemount.core.errors import UnsupportedError

CLOUDS: dict[str, type[Cloud]] = {"local": LocalCloud}


def cloud(name: str) -> Cloud:
    """The cloud of this name. Raises `UnsupportedError`."""
    if name not in CLOUDS:
        raise UnsupportedError(f"there is no cloud {name!r}", hint="known are " + ", ".join(sorted(CLOUDS)))
    return CLOUDS[name]()
