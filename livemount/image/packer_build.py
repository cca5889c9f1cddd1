"""Runs `packer build` through python-packer: `python -m livemount.image.packer_build TEMPLATE`, the variables on stdin.

In a process of its own: python-packer's `sh` forks and runs Python before the program starts, and the Pulumi provider
has gRPC threads, which no fork survives. Packer's words go to our own outputs, its exit code is ours.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import sh  # type: ignore[import-untyped]


def main() -> int:
    """Build. The environment and the working folder are Packer's, too."""
    # By name and not by `import`: type checkers take our folder packer/ for the module.
    python_packer: Any = importlib.import_module("packer")
    client = python_packer.Packer(sys.argv[1], vars=json.load(sys.stdin))
    # A pipe, not sh's terminal: what was said last is lost with a terminal that closes.
    client.packer = client.packer.bake(_tty_out=False)
    try:
        client.build(parallel=False)  # its default passes a flag that Packer dropped
    except sh.ErrorReturnCode as error:
        sys.stderr.buffer.write(error.stderr + b"\n" + error.stdout)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
