"""`livemount report`: what of each policy and machine is there, what is late, how it grows."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated

import typer

from livemount.cli.copies import Output
from livemount.cli.output import (
    OUTPUT_VERSION,
    OutputFormat,
    bytes_text,
    duration_text,
    print_json,
    print_line,
    print_table,
    stdout,
    warn,
)
from livemount.cli.parse import parse_grace
from livemount.core.errors import LateError, NotFoundError, UnavailableError
from livemount.core.settings import Settings
from livemount.policies.metrics import metrics_text
from livemount.policies.report import Entry, Report, Run, make_report


def report(
    policy: Annotated[str | None, typer.Option(help="Only this policy.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only this machine.")] = None,
    grace: Annotated[str, typer.Option(help="How long after its time a backup may end: 30m, 2h, 1d.")] = "1h",
    days: Annotated[int, typer.Option(min=1, max=3660, help="How far back growth is told of.")] = 30,
    fail_if_late: Annotated[
        bool, typer.Option("--fail-if-late", help="Exit code 10 when something is late, 5 when that is not known.")
    ] = False,
    metrics: Annotated[bool, typer.Option("--metrics", help="Print it in Prometheus' text format.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of --output json.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Tell of each policy and machine the last success and failure, what is late, how many copies, how they grow.

    Example: livemount report --fail-if-late --grace 2h
    """
    if schema:
        print_line(schema_text().rstrip("\n"))
        return
    found = _only(make_report(Settings(), warn, parse_grace(grace), days), policy, machine)
    if output is OutputFormat.JSON:
        print_json(**found.model_dump(mode="json"))
    elif metrics:
        print_line(metrics_text(found).rstrip("\n"))
    else:
        _show(found, days)
    if fail_if_late and found.late:
        raise LateError(f"late: {'; '.join(found.late)}", hint="`livemount jobs` tells what was tried")
    if fail_if_late and found.problem:
        raise UnavailableError(f"whether the copies are there is not known: {found.problem}")


def schema_text() -> str:
    """The schema as it is published in `docs/report.schema.json`."""
    schema = Report.model_json_schema(mode="serialization")
    schema["properties"] = {"version": {"const": OUTPUT_VERSION}, **schema["properties"]}
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=2) + "\n"


def _only(found: Report, policy: str | None, machine: str | None) -> Report:
    entries = [each for each in found.entries if policy in (None, each.policy) and machine in (None, each.machine)]
    if not entries and (policy, machine) != (None, None):
        known = ", ".join(sorted({each.policy or each.machine for each in found.entries})) or "none"
        raise NotFoundError(f"nothing is known of {policy or machine}", hint=f"policies and machines: {known}")
    names = {each.policy for each in entries}
    upkeep = [each for each in found.upkeep if each.policy in names]
    return found.model_copy(update={"entries": entries, "upkeep": upkeep})


def _show(found: Report, days: int) -> None:
    columns = ["MACHINE", "POLICY", "STATE", "LAST SUCCESS", "COPIES", "SIZE", "IN USE", "ADDED"]
    print_table(
        [*columns, f"IN {days} DAYS", "LAST FAILURE"],
        (
            (
                entry.machine,
                entry.policy or "-",
                state_of(entry),
                "never" if entry.age_seconds is None else f"{duration_text(entry.age_seconds)} ago",
                _known(entry.copies) + (f" ({entry.held} held)" if entry.held else ""),
                _bytes(entry.size),
                _bytes(entry.stored),
                _bytes(entry.added),
                bytes_text(sum(day.added for day in entry.growth)),
                _failure(entry),
            )
            for entry in found.entries
        ),
        empty="no policies, copies or backups yet",
    )
    if found.problem:
        warn(f"{found.problem}; what the jobs say is shown")
    for name, last in (("check", found.last_check), ("prune", found.last_prune)):
        late = [each.policy for each in found.upkeep if each.purpose == name and each.late]
        told = "never" if last is None else _run(last)
        behind = f"; late by the policy {', '.join(late)}" if late else ""
        stdout.print(f"last {name}: {told}{behind}", highlight=False, markup=False)


def state_of(entry: Entry) -> str:
    """How it is with a policy, in a word or two."""
    words = [
        *(["late"] if entry.late else []),
        *(["failing"] if entry.failing else []),
        *(["running"] if entry.running_since else []),
        *(["suspended"] if entry.suspended else []),
    ]
    return ", ".join(words) or ("ok" if entry.policy else "no policy")


def _failure(entry: Entry) -> str:
    """The reason only where it is still of interest."""
    if entry.last_failure is None:
        return ""
    return _run(entry.last_failure) if entry.failing else _time(entry.last_failure.time)


def _time(time: datetime) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M}"


def _run(run: Run) -> str:
    return f"{_time(run.time)} {run.outcome}: {run.reason}".removesuffix(": ")


def _known(count: int | None) -> str:
    return "?" if count is None else str(count)


def _bytes(count: int | None) -> str:
    return "" if count is None else bytes_text(count)
