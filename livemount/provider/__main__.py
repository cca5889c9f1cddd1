"""The plug-in that Pulumi's engine starts: `pulumi-resource-livemount ENGINE_ADDRESS`."""

from __future__ import annotations

import argparse
import logging
import sys

from livemount import __version__
from livemount.provider.provider import LivemountProvider
from livemount.provider.registry import find
from livemount.provider.server import serve


def main() -> None:
    """Serve the engine that started us. The engine adds flags of its own (logging, tracing), which are left aside."""
    parser = argparse.ArgumentParser(prog="pulumi-resource-livemount", description=__doc__)
    parser.add_argument("engine", help="address of Pulumi's engine")
    options, _ = parser.parse_known_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    serve(LivemountProvider(find), __version__, options.engine)


if __name__ == "__main__":
    main()
