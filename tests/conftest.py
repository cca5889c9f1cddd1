"""Test processes side by side: end-to-end tests in two groups, each with its environment; others by their files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from typing_extensions import override
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

TESTS = Path(__file__).parent
ORDER = ("end_to_end", "integration", "unit")
LIFE = ("test_live_mount", "test_failures")
"""Of the end-to-end tests: the life of a mount, and its ends. All others, the boots, take as long together."""


class Groups(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives a process a whole group at a time."""

    @override
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if not file.startswith("tests/end_to_end/"):
            return file
        return "life" if Path(file).stem in LIFE else "boots"


def pytest_configure() -> None:
    """What tests interrupt can be: a shell's job in the background, and all that it starts, ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Groups:
    """Asked by xdist."""
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: ORDER.index(item.path.relative_to(TESTS).parts[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Why a test was tried again: one that fails only sometimes is a fault to be found, of it or of what it tests."""
    for report in terminalreporter.stats.get("rerun", []):
        terminalreporter.section(f"tried again: {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)
