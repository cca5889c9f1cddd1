"""Quotas as people write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from livemount.core.errors import UsageError
from livemount.core.quota import Quota, parse_quota


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("1073741824", 1 << 30),
        ("512KiB", 512 << 10),
        ("3MiB", 3 << 20),
        ("200GiB", 200 << 30),
        ("2TiB", 2 << 40),
    ],
)
def test_bytes(tmp_path: Path, text: str, count: int) -> None:
    assert parse_quota(text) == Quota(count)
    assert parse_quota(text).bytes_at(tmp_path) == count


@pytest.mark.parametrize("percent", [0, 50, 100])
def test_parts_of_a_file_system(tmp_path: Path, percent: int) -> None:
    system = os.statvfs(tmp_path)
    whole = system.f_blocks * system.f_frsize
    assert parse_quota(f"{percent}%").bytes_at(tmp_path) == whole * percent // 100


@pytest.mark.parametrize(
    "text", ["", "GiB", "1.5GiB", "5GB", "5 GiB", "-1", "101%", "50 %", "%", "1" * 19, "7GiB\n", "٣"]
)
def test_what_is_no_quota(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_quota(text)
    assert raised.value.hint
