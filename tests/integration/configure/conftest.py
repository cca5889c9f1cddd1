"""Folders for hosts: sockets below them must have short paths."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A temporary folder with a path of a few letters, open for nginx's workers to pass through."""
    with tempfile.TemporaryDirectory(prefix="lm") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
