"""Runs the manager's service: `python -m livemount.manager` (environment variables: see `livemount.core.settings`)."""

from __future__ import annotations

import logging

from livemount.core.settings import Settings
from livemount.manager.service import serve
from livemount.workflow.stacks import PulumiStacks


def main() -> None:
    """Serve until the process is told to end."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings()
    serve(settings, PulumiStacks(settings))


if __name__ == "__main__":
    main()
