"""`livemount jobs`: what was done and what runs, once or live."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from livemount.catalog.api import open_catalog
from livemount.catalog.catalog import Job, JobKind, Outcome
from livemount.cli.copies import Output
from livemount.cli.output import (
    OutputFormat,
    bytes_text,
    duration_text,
    print_json,
    print_json_line,
    print_line,
    print_table,
    stdout,
)
from livemount.cli.watch import repeat
from livemount.core.errors import UnavailableError
from livemount.core.machine import Frozen
from livemount.core.settings import Settings

COLUMNS = ("STARTED", "KIND", "MACHINE", "POLICY", "OUTCOME", "TOOK", "BYTES", "REASON")
ROWS = 20
"""Of a live table, unless told otherwise."""


def jobs(
    machine: Annotated[str | None, typer.Argument(help="Only this machine's.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only this kind.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The newest so many (50; 20 with --watch).")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show them, live, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="With --watch: seconds between looks.")] = 2,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the jobs that the catalog knows, oldest first: backups, checks and so on, done, failed, crashed, running.

    Example: livemount jobs web01 --kind backup

    Example: livemount jobs --watch
    """
    watcher = Watcher(Settings(), machine, kind, limit or (ROWS if watch else 50))
    if watch:
        _watch(watcher, interval, output)
        return
    found = watcher.jobs()
    if output is OutputFormat.JSON:
        print_json(jobs=[job.model_dump(mode="json") for job in found])
        return
    now = datetime.now(UTC)
    print_table(COLUMNS, (_cells(job, now) for job in found), empty="no jobs yet")


class Look(Frozen):
    """The jobs at one time."""

    time: datetime
    jobs: list[Job]
    changed: list[Job]
    """Those that began, ended or began again since the last look."""
    problem: str | None
    """Why the catalog could not be looked at; the jobs are those of the last look then."""


class Watcher:
    """Remembers the last look."""

    def __init__(self, settings: Settings, machine: str | None, kind: JobKind | None, limit: int) -> None:
        self._settings = settings
        self._machine, self._kind, self._limit = machine, kind, limit
        self._last: list[Job] = []
        self._problem: str | None = None

    def jobs(self) -> list[Job]:
        """The newest jobs, oldest first. Raises what the catalog raises."""
        with open_catalog(self._settings) as catalog:
            return catalog.jobs(machine=self._machine, kind=self._kind, limit=self._limit)

    def look(self) -> Look:
        """The jobs as they are now. A catalog that is away is a part of the look, not its end."""
        last, self._problem = self._last, None
        try:
            self._last = self.jobs()
        except UnavailableError as error:
            self._problem = str(error)
        changed = [job for job in self._last if job not in last]
        return Look(time=datetime.now(UTC), jobs=self._last, changed=changed, problem=self._problem)


def _watch(watcher: Watcher, interval: float, output: OutputFormat) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        if output is OutputFormat.JSON:
            repeat(watcher.look, interval, lambda look: print_json_line(**_json(look)))
        elif not stdout.is_terminal:
            repeat(watcher.look, interval, _print_lines)
        else:
            with Live(console=stdout, auto_refresh=False) as live:
                repeat(watcher.look, interval, lambda look: live.update(table(look), refresh=True))


def _cells(job: Job, now: datetime) -> tuple[str, ...]:
    over = now if job.outcome is None else job.ended
    return (
        job.started.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
        job.kind,
        job.machine or "",
        job.policy or "",
        job.outcome or "running",
        "" if over is None else duration_text((over - job.started).total_seconds()),
        "" if job.bytes is None else bytes_text(job.bytes),
        job.reason,
    )


def _json(look: Look) -> dict[str, object]:
    changed = [job.model_dump(mode="json") for job in look.changed]
    return {"time": look.time.isoformat(), "problem": look.problem, "jobs": changed}


def table(look: Look) -> Group:
    """A look for a terminal."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        grid.add_column(column, overflow="fold")
    for job in look.jobs:
        style = "bold red" if job.outcome in (Outcome.FAILED, Outcome.CRASHED) else None
        grid.add_row(*map(Text, _cells(job, look.time)), style=style)
    foot = f"{look.time.astimezone():%H:%M:%S}  {sum(job.outcome is None for job in look.jobs)} running; Ctrl-C ends"
    return Group(grid, *([Text(look.problem, style="bold red")] if look.problem else []), Text(foot))


def _print_lines(look: Look) -> None:
    for job in look.changed:
        print_line("; ".join(cell for cell in _cells(job, look.time) if cell))
    if look.problem:
        print_line(f"{look.time.astimezone():%H:%M:%S} {look.problem}")
