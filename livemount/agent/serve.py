"""Starts an agent: looks whether all is there, then becomes nbdkit with our plug-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from livemount.agent.config import AgentConfig, load
from livemount.core.errors import DeniedError, UnsupportedError
from livemount.media.certificates import fault

PLUGIN = Path(__file__).with_name("plugin.py")


def serve(file: Path) -> None:
    """Serve what a configuration says, in the foreground and in this process; returns only by an error.

    Raises `UsageError`, `NotFoundError`, `DeniedError` for certificates that clients would refuse, `UnsupportedError`.
    """
    file = file.absolute()
    words = command(file, load(file))
    os.execvpe(words[0], words, environment())  # noqa: S606  # no shell is wanted


def command(file: Path, config: AgentConfig) -> list[str]:
    """The words that run nbdkit."""
    if shutil.which("nbdkit") is None or not _has_python():
        raise UnsupportedError(
            "nbdkit or its Python plug-in is not installed", hint="apt-get install nbdkit nbdkit-plugin-python"
        )
    problem = fault(config.certificates, "server")
    if problem is not None:
        raise DeniedError(problem)
    host, port = config.address
    return [
        "nbdkit",
        "--foreground",
        f"--ipaddr={host}",
        f"--port={port}",
        "--readonly",
        "--tls=require",
        f"--tls-certificates={config.certificates}",
        "--tls-verify-peer",
        "python",
        str(PLUGIN),
        f"config={file}",
    ]


def environment() -> dict[str, str]:
    """Where nbdkit's own interpreter finds what this one has."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _has_python() -> bool:
    done = subprocess.run(["nbdkit", "python", "--dump-plugin"], capture_output=True, check=False)
    return done.returncode == 0
