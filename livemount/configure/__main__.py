"""Makes this machine the live-mount host of an environment: `python -m livemount.configure --environment NAME ...`.

For a host that sets itself up (docs/aws.md): its token and certificate lie in a folder already.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from livemount.configure.api import HostSpec, configure
from livemount.core.errors import LivemountError
from livemount.core.settings import Settings


def main() -> None:
    """Run the roles on this machine."""
    parser = argparse.ArgumentParser(prog="python -m livemount.configure", description=__doc__)
    parser.add_argument("--environment", required=True, help="the environment's name")
    parser.add_argument("--address", required=True, help="this machine's address, as guests and clients reach it")
    parser.add_argument("--port", type=int, required=True, help="where the API is served over HTTPS")
    parser.add_argument(
        "--secrets", type=Path, required=True, help="folder: api-token, server-cert.pem, server-key.pem"
    )
    options = parser.parse_args()
    settings = Settings()
    spec = HostSpec(
        environment=options.environment,
        home=settings.home,
        address=options.address,
        port=options.port,
        certificates=options.secrets,
        token_file=options.secrets / "api-token",
        guest_tools=settings.cache / "guest-tools",
        recall_quota=settings.recall_quota,
        keep_recall_stores=settings.keep_recall_stores,
    )
    try:
        configure(spec)
    except LivemountError as error:
        sys.exit(f"{error.message}\n{error.hint or ''}".rstrip())


if __name__ == "__main__":
    main()
