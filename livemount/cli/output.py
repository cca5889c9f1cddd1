"""What commands print: tables for people, versioned JSON for programs; progress and errors go to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table

OUTPUT_VERSION = 1
"""Version of the JSON output: raised when a field goes or changes its meaning."""

stdout = Console(soft_wrap=True)
stderr = Console(stderr=True, soft_wrap=True)
_wide = Console(width=1000, soft_wrap=True)
"""For tables: a row is never cut, a narrow terminal wraps it."""


class OutputFormat(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"


def warn(text: str) -> None:
    """Tell people of something that is not as it should be, on standard error."""
    stderr.print(f"warning: {text}", highlight=False, markup=False)


def print_json(**fields: Any) -> None:
    """Print one JSON object with its version."""
    sys.stdout.write(json.dumps({"version": OUTPUT_VERSION, **fields}, indent=2, default=str) + "\n")


def print_json_line(**fields: Any) -> None:
    """Print one JSON object with its version as one line, at once: for results that come one after the other."""
    print_line(json.dumps({"version": OUTPUT_VERSION, **fields}, default=str))


def print_line(text: str) -> None:
    """Print a line as it is, at once, whatever it goes to."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, empty: str) -> None:
    """Print a table, or the text `empty` when it has no rows."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=True)
    count = 0
    for row in rows:
        table.add_row(*[str(cell) for cell in row])
        count += 1
    if count:
        _wide.print(table)
    else:
        stdout.print(empty, highlight=False)


def bytes_text(count: float) -> str:
    """A number of bytes for people, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def local_time(time: datetime) -> str:
    """A time for people, by this machine's clock."""
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration_text(seconds: float) -> str:
    """A duration for people: `1h 05m`, `2m 10s`, `45s`."""
    whole = max(0, int(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours}h {minutes:02}m"
    return f"{minutes}m {int(seconds):02}s" if minutes else f"{int(seconds)}s"


def count_text(count: float) -> str:
    """A number of things for people: `0.5`, `12`, `1.2k`, `3.4M`."""
    if 0 < count < 10 and count != int(count):
        return f"{count:.1f}"
    for unit in ("", "k", "M"):
        if count < 999.5:
            return f"{count:.0f}" if not unit else f"{count:.1f}{unit}"
        count /= 1000
    return f"{count:.1f}G"


def latency_text(seconds: float) -> str:
    """A short time for people: `512 µs`, `8.2 ms`, `1.0 s`; `-` for none."""
    if seconds <= 0:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"
