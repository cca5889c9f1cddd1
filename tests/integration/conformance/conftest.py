"""The driver's and the target's own set-ups, together: a pseudo-disk behind a real target."""

from __future__ import annotations

from tests.integration.driver.conftest import host
from tests.integration.target.conftest import bench

__all__ = ["bench", "host"]
