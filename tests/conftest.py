"""Two test processes side by side: the end-to-end tests, which share an environment, in one; files stay together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typing_extensions import override
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

TESTS = Path(__file__).parent
ORDER = ("end_to_end", "integration", "unit")


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives a process a whole group at a time."""

    @override
    def _split_scope(self, nodeid: str) -> str:
        return "end_to_end" if nodeid.startswith("tests/end_to_end/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    """Asked by xdist."""
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: ORDER.index(item.path.relative_to(TESTS).parts[0]))
