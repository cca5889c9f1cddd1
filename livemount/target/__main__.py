"""`python -m livemount.target --root HOST_ROOT --portal ADDRESS`: becomes the tgtd of a live-mount host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.settings import HostPaths
from livemount.target.command import PORT, exec_tgtd


def main() -> int:
    """Parse the arguments and become tgtd."""
    parser = argparse.ArgumentParser(prog="livemount.target", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the live-mount host")
    parser.add_argument("--portal", required=True, help="IP address to listen on")
    parser.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    try:
        exec_tgtd(HostPaths(options.root.absolute()), options.portal, options.port)
    except LivemountError as error:
        print(f"livemount.target: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
