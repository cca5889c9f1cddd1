"""How the command line reads what people type."""

from __future__ import annotations

import re
from datetime import timedelta

from livemount.core.errors import UsageError
from livemount.core.machine import LONGEST_HOLD

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST = timedelta(seconds=10)
LONGEST = timedelta(days=30)


def parse_duration(text: str) -> timedelta:
    """How long something of a mount lasts: `15m`, `2h`, `1h30m`, `45s` or `1d`. Raises `UsageError`."""
    duration = _parse(text, "15m, 2h, 1h30m or 1d")
    if not SHORTEST <= duration <= LONGEST:
        raise UsageError(f"{text!r} is too short or too long for a mount", hint="between 10s and 30d")
    return duration


def parse_hold(text: str) -> timedelta:
    """How long I/O is held: `0s` to `1h`. Raises `UsageError`."""
    duration = _parse(text, "20s, 2m or 0s")
    if duration.total_seconds() > LONGEST_HOLD:
        raise UsageError(f"{text!r} is too long to hold I/O", hint="between 0s and 1h")
    return duration


def parse_grace(text: str) -> timedelta:
    """How long after its time something counts as late: `0s`, `30m`, `1d`. Raises `UsageError`."""
    return _parse(text, "30m, 1h or 1d")


def _parse(text: str, examples: str) -> timedelta:
    if not re.fullmatch(r"(\d{1,6}[smhd])+", text):
        raise UsageError(f"{text!r} is not a duration", hint=f"for example {examples}")
    return timedelta(seconds=sum(int(n) * _UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", text)))
