"""Whether this interpreter can import what is not pip's to install: Debian's bindings, and the native extension."""

from __future__ import annotations

import sys
from importlib import import_module

from livemount.core.errors import LivemountError
from livemount.doctor.api import check

DEBIAN = {"nbd": "python3-libnbd", "hivex": "python3-hivex"}


@check("Python bindings of Debian")
def debian() -> str:
    """libnbd and hivex, visible when the virtual environment was made from /usr/bin/python3."""
    missing = []
    for name in DEBIAN:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        packages = " ".join(DEBIAN[name] for name in missing)
        raise LivemountError(
            f"{sys.executable} cannot import {', '.join(missing)}",
            hint=f"apt-get install {packages}, then `make setup` (.venv needs /usr/bin/python3 and its packages)",
        )
    return ", ".join(DEBIAN)


@check("native extension")
def native() -> str:
    """The hit path and the repository reader, in Rust."""
    try:
        module = import_module("livemount._native")
    except ImportError as error:
        raise LivemountError(
            f"livemount._native: {error}", hint="run `make setup` (needs Rust 1.91 or newer)"
        ) from error
    return str(module.__file__)
