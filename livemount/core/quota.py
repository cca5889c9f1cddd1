"""A quota of storage as people write it: bytes, bytes with a unit, or a part of the file system."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from livemount.core.errors import UsageError

QUOTA_PATTERN = r"^([0-9]{1,18}|[0-9]{1,6}(KiB|MiB|GiB|TiB)|(100|[0-9]{1,2})%)$"
QuotaText = Annotated[str, Field(pattern=QUOTA_PATTERN)]
"""What `parse_quota` takes."""
RECALL_QUOTA = "50%"
"""For all recall stores of a host, where nothing else is said."""

_UNITS = {"KiB": 10, "MiB": 20, "GiB": 30, "TiB": 40}


@dataclass(frozen=True)
class Quota:
    """So many bytes, or so many hundredths of a file system."""

    count: int
    is_percentage: bool = False

    def bytes_at(self, folder: Path) -> int:
        """The quota in bytes, for what lies in a folder that exists."""
        if not self.is_percentage:
            return self.count
        system = os.statvfs(folder)
        return system.f_blocks * system.f_frsize * self.count // 100


def parse_quota(text: str) -> Quota:
    """A quota such as `200GiB`, `1073741824` or `50%`. Raises `UsageError`."""
    if not re.fullmatch(QUOTA_PATTERN.strip("^$"), text):
        raise UsageError(f"{text!r} is not a quota", hint="for example 200GiB, 1TiB, 1073741824 (bytes) or 50%")
    if text.endswith("%"):
        return Quota(int(text[:-1]), is_percentage=True)
    number, unit = re.fullmatch(r"(\d+)(\D*)", text).groups()  # type: ignore[union-attr]  # the pattern says so
    return Quota(int(number) << _UNITS.get(unit, 0))
