"""Runs a media agent as a service does: `python -m livemount.agent --config FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from livemount.agent.serve import serve
from livemount.core.errors import LivemountError


def main() -> None:
    """Serve until the process is told to end."""
    parser = argparse.ArgumentParser(prog="python -m livemount.agent", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="what to serve (see livemount.agent.config)")
    try:
        serve(parser.parse_args().config)
    except LivemountError as error:
        sys.exit(f"the agent cannot serve: {error}")


if __name__ == "__main__":
    main()
