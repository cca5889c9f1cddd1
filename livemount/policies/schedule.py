"""When something is due: a cron expression and the time zone that its hours are of."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import croniter

_FIELD = r"(?:[0-9*/,\-#?]|[A-Za-z]{3}|[Ll])+"
FIELDS = re.compile(rf"{_FIELD}(?: {_FIELD}){{4,5}}")
"""Not croniter's `R` and `H`, which are another time whenever they are asked."""
LONGEST = 200
"""Characters of an expression."""


def zone(name: str) -> ZoneInfo:
    """The time zone of this name. Raises `ValueError`."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError(f"{name!r} is no time zone; one is for example Europe/Berlin") from None


def valid(expression: str) -> str:
    """The expression, its blanks made single, when it is one and comes due at all. Raises `ValueError`."""
    words = " ".join(expression.split())
    if len(words) > LONGEST or not FIELDS.fullmatch(words):
        raise ValueError("a cron expression has five fields (minute hour day month weekday), or six: seconds first")
    try:
        due_after(words, "UTC", datetime.now(UTC))
    except (ValueError, KeyError) as error:
        raise ValueError(f"the cron expression {words!r} cannot be: {error}") from None
    return words


def last_due(expression: str, time_zone: str, now: datetime) -> datetime:
    """The last time that was due, `now` included; in UTC."""
    found: datetime = _times(expression, time_zone, now + timedelta(microseconds=1)).get_prev(datetime)
    return found.astimezone(UTC)


def due_after(expression: str, time_zone: str, now: datetime) -> datetime:
    """The next time that is due; in UTC."""
    found: datetime = _times(expression, time_zone, now).get_next(datetime)
    return found.astimezone(UTC)


def _times(expression: str, time_zone: str, start: datetime) -> croniter:
    return croniter(expression, start.astimezone(zone(time_zone)), second_at_beginning=True)
