"""`livemount doctor`: what this machine lacks, and how to get it."""

from __future__ import annotations

import typer

from livemount.cli.copies import Output
from livemount.cli.output import OutputFormat, print_json, stdout
from livemount.core.errors import ExitCode
from livemount.doctor import checks


def doctor(output: Output = OutputFormat.TABLE) -> None:
    """Look whether this machine has all that is needed. Exit code 5 when something is missing."""
    found = checks()
    missing = [check for check in found if not check.ok]
    if output is OutputFormat.JSON:
        print_json(
            checks=[
                {"name": check.name, "ok": check.ok, "detail": check.detail, "way_out": check.way_out}
                for check in found
            ]
        )
    else:
        for check in found:
            mark = "[green]ok     [/]" if check.ok else "[red]missing[/]"
            stdout.print(f"{mark} {check.name}: {check.detail}", highlight=False)
            if not check.ok:
                stdout.print(f"        -> {check.way_out}", highlight=False)
        stdout.print("all is there" if not missing else f"{len(missing)} of {len(found)} missing")
    if missing:
        raise typer.Exit(int(ExitCode.UNAVAILABLE))
