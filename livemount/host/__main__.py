"""Runs the live-mount host's service: `python -m livemount.host --root FOLDER --address ADDRESS --token-file FILE`."""

from __future__ import annotations

import argparse
import logging
import os
from functools import partial
from pathlib import Path

import uvicorn

from livemount.boot.nginx import NginxBoot
from livemount.core.secrets import read_secret
from livemount.core.settings import HostPaths
from livemount.driver.client import DriverClient
from livemount.guest.prepare import prepare
from livemount.guest.tools import GuestTools
from livemount.host.mounts import Mounts
from livemount.host.records import Records
from livemount.host.service import create_app
from livemount.target.tgt import TgtTarget


def main() -> None:
    """Serve until the process is told to end."""
    parser = argparse.ArgumentParser(prog="python -m livemount.host", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the host's folder (see HostPaths)")
    parser.add_argument("--address", required=True, help="the host's address on the guests' network")
    parser.add_argument("--token-file", type=Path, required=True, help="the API token that clients must show")
    parser.add_argument("--guest-tools", type=Path, required=True, help="the unpacked tools of guest preparation")
    parser.add_argument(
        "--listen", metavar="PORT", type=int, help="serve HTTPS on ADDRESS:PORT instead of the unix socket"
    )
    parser.add_argument("--certificate", type=Path, help="for --listen: the host's TLS certificate")
    parser.add_argument("--key", type=Path, help="for --listen: its key")
    options = parser.parse_args()
    if options.listen and not (options.certificate and options.key):
        parser.error("--listen needs --certificate and --key: the token must not cross a network in the clear")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    host = HostPaths(options.root)
    mounts = Mounts(
        address=options.address,
        records=Records(host.mounts, host.recall),
        driver=DriverClient(host.driver_socket),
        target=TgtTarget(host.target_socket),
        boot=NginxBoot(host),
        prepare=partial(prepare, tools=GuestTools(options.guest_tools)),
    )
    app = create_app(mounts, read_secret(options.token_file))
    if options.listen:
        uvicorn.run(
            app,
            host=options.address,
            port=options.listen,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.key,
            log_config=None,
        )
    else:
        host.api_socket.unlink(missing_ok=True)
        os.umask(0o077)
        uvicorn.run(app, uds=str(host.api_socket), log_config=None)


if __name__ == "__main__":
    main()
