"""The pseudo-disk service: `python -m livemount.driver --root HOST_ROOT`.

Ending it leaves the disks in service; `--detach-all` takes them down through the running service.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from livemount.core.errors import LivemountError, UsageError
from livemount.core.quota import RECALL_QUOTA, parse_quota
from livemount.core.settings import HostPaths
from livemount.driver.api import PseudoDiskDriver
from livemount.driver.client import DriverClient
from livemount.driver.recall_stores import RecallPolicy
from livemount.driver.supervisor import serve


def main() -> int:
    """Run the service, or talk to it."""
    parser = argparse.ArgumentParser(prog="livemount.driver", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the live-mount host")
    parser.add_argument("--detach-all", action="store_true", help="take down all disks, keeping their stores")
    parser.add_argument(
        "--recall-quota",
        type=parse_quota,
        default=RECALL_QUOTA,
        help="room of all recall stores: 200GiB, or a part of the file system: 50%% (the default)",
    )
    parser.add_argument(
        "--keep-recall-stores",
        action="store_true",
        help="keep what was recalled for the next mount of the same copy, within the quota",
    )
    try:
        arguments = parser.parse_args()
    except UsageError as error:
        parser.error(str(error))
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    paths = HostPaths(arguments.root.resolve())
    try:
        if arguments.detach_all:
            driver: PseudoDiskDriver = DriverClient(paths.driver_socket)
            for state in driver.states():
                driver.detach(state.spec.id)
        else:
            serve(paths, RecallPolicy(arguments.recall_quota, arguments.keep_recall_stores))
    except LivemountError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
