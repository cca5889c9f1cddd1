"""The driver's and the target's own set-ups, together: the parts of a live-mount host."""

from __future__ import annotations

from tests.integration.driver.conftest import host
from tests.integration.target.conftest import bench

__all__ = ["bench", "host"]
