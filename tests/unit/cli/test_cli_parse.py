"""What people type: durations are understood or refused with an example."""

from __future__ import annotations

from datetime import timedelta

import pytest

from livemount.cli.output import bytes_text, duration_text
from livemount.cli.parse import parse_duration, parse_hold
from livemount.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("15m", timedelta(minutes=15)),
        ("2h", timedelta(hours=2)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("45s", timedelta(seconds=45)),
        ("1d", timedelta(days=1)),
    ],
)
def test_durations(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "15", "m", "-5m", "1.5h", "15 m", "1w", "0s", "9s", "31d", "9999999s", "15m\n"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_duration(text)
    assert raised.value.hint


@pytest.mark.parametrize(("text", "seconds"), [("0s", 0), ("20s", 20), ("2m30s", 150), ("1h", 3600)])
def test_holds(text: str, seconds: float) -> None:
    assert parse_hold(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "20", "-1s", "1.5s", "1h1s", "1d", "20s\n"])
def test_bad_holds(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_hold(text)
    assert raised.value.hint


def test_texts() -> None:
    assert bytes_text(0) == "0 B"
    assert bytes_text(1536) == "1.5 KiB"
    assert bytes_text(3 * 2**40) == "3.0 TiB"
    assert duration_text(45) == "45s"
    assert duration_text(130) == "2m 10s"
    assert duration_text(3900) == "1h 05m"
    assert duration_text(-3) == "0s"
