"""Durations as people write them: `15m`, `2h`, `1h30m`, `45s`, `1d`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
PATTERN = r"^(\d{1,6}[smhd])+$"


def seconds(text: str) -> float:
    """Seconds of a duration. Raises `ValueError`."""
    if not re.fullmatch(PATTERN, text):
        raise ValueError(f"{text!r} is not a duration")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", text))


class Duration(str):
    """A duration in a file: kept as it was written."""

    __slots__ = ()

    @property
    def seconds(self) -> float:
        """How long it is."""
        return seconds(self)

    @property
    def delta(self) -> timedelta:
        """How long it is."""
        return timedelta(seconds=self.seconds)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A text of the pattern, for validation and for the JSON schema."""
        return core_schema.no_info_after_validator_function(
            cls,
            core_schema.str_schema(pattern=PATTERN, max_length=40),
            serialization=core_schema.to_string_ser_schema(),
        )
