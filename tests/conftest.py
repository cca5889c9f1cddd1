"""Two test processes side by side: what shares something stays together, and what takes longest begins first."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ORDER = ("end_to_end", "integration", "unit")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group tests that share an environment, or else a file, before xdist looks: it keeps a group in one process."""
    for item in items:
        shares_site = "site" in getattr(item, "fixturenames", ())
        group = "site" if shares_site else str(item.path.relative_to(TESTS))
        item.add_marker(pytest.mark.xdist_group(group))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: ORDER.index(item.path.relative_to(TESTS).parts[0]))
