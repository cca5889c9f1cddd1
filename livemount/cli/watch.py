"""`livemount mounts --watch`: the mounts' counters, live: a table on a terminal, else lines or JSON lines."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from livemount.cli.output import (
    OutputFormat,
    bytes_text,
    count_text,
    duration_text,
    latency_text,
    print_json_line,
    print_line,
    stdout,
)
from livemount.core.settings import Settings
from livemount.manager.client import Manager
from livemount.manager.environment import Environment
from livemount.manager.looks import Look, MountLook, Percentiles, Watcher
from livemount.workflow.states import MountRecord

T = TypeVar("T")

COLUMNS = (
    "MOUNT\nSTATE, LEFT",
    "ZERO, PRIVATE,\nRECALL, SOURCE",
    "RECALLED\nPER SECOND",
    "PRIVATE\n",
    "READS\nP50, P99",
    "WRITES\nP50, P99",
    "ERRORS\nRESTARTS",
)


def watch(settings: Settings, interval: float, output: OutputFormat, *, ended: bool) -> None:
    """Look every `interval` seconds and show, until Ctrl-C. Raises `UnavailableError` when no manager runs."""
    with contextlib.suppress(KeyboardInterrupt):
        manager = Manager(settings.paths())
        try:
            watcher = Watcher(manager, Environment(settings), ended=ended)
            if output is OutputFormat.JSON:
                repeat(watcher.look, interval, lambda look: print_json_line(**as_json(look)))
            elif not stdout.is_terminal:
                repeat(watcher.look, interval, lambda look: print_line("\n".join(lines(look))))
            else:
                with Live(console=stdout, auto_refresh=False) as live:
                    repeat(watcher.look, interval, lambda look: live.update(table(look), refresh=True))
        finally:
            manager.close()


def repeat(look: Callable[[], T], interval: float, show: Callable[[T], object]) -> None:
    """Look and show, every `interval` seconds, for ever."""
    due = time.monotonic()
    while True:
        show(look())
        # A look that took long is not made up for.
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def left_seconds(record: MountRecord) -> float | None:
    """Seconds until a mount ends by itself; `None` for one that is over."""
    return None if record.state.final else max(0.0, (record.order.expires - datetime.now(UTC)).total_seconds())


def as_json(look: Look) -> dict[str, object]:
    """A look for programs."""
    return {
        "time": look.time.isoformat(),
        "problem": look.problem,
        "mounts": [
            {
                "mount": each.record.order.mount,
                "state": each.record.state,
                "left_seconds": left_seconds(each.record),
                "problems": each.disk.problems if each.disk else [],
                "stats": each.disk.stats.model_dump(mode="json") if each.disk else None,
                "rates": each.rates.model_dump(mode="json") if each.rates else None,
            }
            for each in look.mounts
        ],
    }


def _left(record: MountRecord) -> str:
    left = left_seconds(record)
    return "" if left is None else duration_text(left)


def _latencies(percentiles: Percentiles | None, separator: str) -> str:
    if percentiles is None:
        return ""
    return f"{latency_text(percentiles.p50)}{separator}{latency_text(percentiles.p99)}"


def table(look: Look) -> Group:
    """A look for a terminal: two lines a mount."""
    grid = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    for number, column in enumerate(COLUMNS):
        grid.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for each in look.mounts:
        grid.add_row(*_cells(each))
    problems = [
        f"{each.record.order.mount}: {text}" for each in look.mounts if each.disk for text in each.disk.problems
    ]
    if look.problem:
        problems.append(look.problem)
    foot = Text(f"{look.time.astimezone():%H:%M:%S}  {len(look.mounts)} mounts; Ctrl-C ends")
    return Group(grid, *(Text(problem, style="bold red") for problem in problems), foot)


def _cells(each: MountLook) -> list[str]:
    first = f"{each.record.order.mount}\n{each.record.state} {_left(each.record)}"
    if each.disk is None:
        return [first]
    stats, rates = each.disk.stats, each.rates
    return [
        first,
        f"{count_text(stats.zero_hits)}, {count_text(stats.private_hits)},\n"
        f"{count_text(stats.recall_hits)}, {count_text(stats.misses)}",
        f"{bytes_text(stats.recalled_bytes)} {stats.recalled_bytes / each.disk.size:.1%}\n"
        + (f"{bytes_text(rates.recalled_bytes_per_second)}/s" if rates else ""),
        bytes_text(stats.private_bytes),
        (f"{count_text(rates.reads_per_second)}/s\n{_latencies(rates.read_latency, ', ')}" if rates else ""),
        (f"{count_text(rates.writes_per_second)}/s\n{_latencies(rates.write_latency, ', ')}" if rates else ""),
        f"{stats.read_errors + stats.write_errors}\n{stats.worker_restarts}",
    ]


def lines(look: Look) -> list[str]:
    """A look for a file or a pipe: one line a mount, and one for a host that does not answer."""
    when = f"{look.time.astimezone():%H:%M:%S}"
    found = [f"{when} {_line(each)}" for each in look.mounts] or [f"{when} no mounts"]
    return [*found, *([f"{when} {look.problem}"] if look.problem else [])]


def _line(each: MountLook) -> str:
    left = _left(each.record)
    parts = [f"{each.record.order.mount} {each.record.state}", *([f"left {left}"] if left else [])]
    if each.disk is not None:
        stats, rates = each.disk.stats, each.rates
        parts += [
            f"hits zero {stats.zero_hits} private {stats.private_hits} recall {stats.recall_hits}"
            f" source {stats.misses}",
            f"recalled {bytes_text(stats.recalled_bytes)} {stats.recalled_bytes / each.disk.size:.1%}",
            f"private {bytes_text(stats.private_bytes)}",
        ]
        if rates is not None:
            parts += [
                f"recall {bytes_text(rates.recalled_bytes_per_second)}/s",
                f"reads {rates.reads_per_second:.1f}/s p50, p99 {_latencies(rates.read_latency, ', ')}",
                f"writes {rates.writes_per_second:.1f}/s p50, p99 {_latencies(rates.write_latency, ', ')}",
            ]
        parts += [f"errors {stats.read_errors + stats.write_errors}", f"restarts {stats.worker_restarts}"]
        parts += each.disk.problems
    return "; ".join(parts)
