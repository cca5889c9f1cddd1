"""`python -m livemount.boot --root HOST_ROOT --address ADDRESS`: becomes the nginx of a live-mount host."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from livemount.boot.command import PORT, WORKER, exec_nginx
from livemount.core.errors import LivemountError
from livemount.core.settings import HostPaths


def main() -> int:
    """Parse the arguments and become nginx."""
    parser = argparse.ArgumentParser(prog="livemount.boot", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the live-mount host")
    parser.add_argument("--address", required=True, help="IPv4 address to listen on")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--worker", default=WORKER, help="user of nginx's worker process")
    options = parser.parse_args()
    try:
        exec_nginx(HostPaths(options.root.absolute()), options.address, options.port, options.worker)
    except LivemountError as error:
        print(f"livemount.boot: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main())
