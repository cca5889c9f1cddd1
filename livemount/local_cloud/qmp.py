"""A minimal client of QEMU's control socket (QMP): one command a connection, with deadlines.

QEMU answers one client at a time. The library `qemu.qmp` is asyncio only, and the callers here are not.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from livemount.core.errors import UnavailableError

_ANSWER_LIMIT = 1 << 20


def execute(path: Path, command: str, *, timeout: float = 5) -> Any:
    """Run one command and return what it returns. Raises `UnavailableError` when QEMU does not answer or refuses."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(str(path))
            with connection.makefile("rwb") as stream:
                if "QMP" not in json.loads(stream.readline(_ANSWER_LIMIT)):
                    raise UnavailableError(f"{path} does not speak QMP")
                for name in ("qmp_capabilities", command):
                    stream.write(json.dumps({"execute": name}).encode() + b"\n")
                    stream.flush()
                    # Events may come before the answer.
                    while not ((answer := json.loads(stream.readline(_ANSWER_LIMIT))).keys() & {"return", "error"}):
                        pass
                    if "error" in answer:
                        raise UnavailableError(f"QEMU refuses {name}: {answer['error'].get('desc')}")
                return answer["return"]
    except (OSError, ValueError) as error:
        raise UnavailableError(f"QEMU does not answer on {path}: {error}") from error
