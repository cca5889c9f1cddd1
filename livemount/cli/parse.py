"""How the command line reads what people type."""

from __future__ import annotations

import re
from datetime import timedelta

from livemount.core.errors import UsageError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST = timedelta(seconds=10)
LONGEST = timedelta(days=30)


def parse_duration(text: str) -> timedelta:
    """A duration such as `15m`, `2h`, `1h30m`, `45s` or `1d`. Raises `UsageError`."""
    if not re.fullmatch(r"(\d{1,6}[smhd])+", text):
        raise UsageError(f"{text!r} is not a duration", hint="for example 15m, 2h, 1h30m or 1d")
    duration = timedelta(seconds=sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text)))
    if not SHORTEST <= duration <= LONGEST:
        raise UsageError(f"{text!r} is too short or too long for a mount", hint="between 10s and 30d")
    return duration
