"""`livemount catalog`: what is known of copies and jobs without asking the repository."""

from __future__ import annotations

from typing import Annotated

import typer

from livemount.catalog.api import open_catalog, rebuild
from livemount.catalog.catalog import JobKind
from livemount.cli.copies import Output, open_repository
from livemount.cli.output import OutputFormat, bytes_text, print_json, print_table, stdout, warn
from livemount.core.settings import Settings

app = typer.Typer(no_args_is_help=True, help="The catalog of copies and jobs (LIVEMOUNT_CATALOG).")


@app.command("rebuild")
def rebuild_(output: Output = OutputFormat.TABLE) -> None:
    """Make the catalog's copies anew from the repository (LIVEMOUNT_REPOSITORY); its jobs stay.

    Never needed while the catalog can be read: it notices by itself when the repository has changed. A damaged SQLite
    file is renamed to `catalog.sqlite.damaged` first.
    """
    settings = Settings()
    found = rebuild(settings, open_repository(settings), warn)
    for reason in found.damaged:
        warn(reason)
    if output is OutputFormat.JSON:
        print_json(copies=len(found.copies), damaged=found.damaged)
    else:
        stdout.print(f"the catalog has {len(found.copies)} copies", highlight=False)


def jobs(
    machine: Annotated[str | None, typer.Argument(help="Only this machine's.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the jobs that the catalog knows, oldest first.

    Example: livemount jobs web01 --kind backup
    """
    with open_catalog(Settings()) as catalog:
        found = catalog.jobs(machine=machine, kind=kind, limit=limit)
    if output is OutputFormat.JSON:
        print_json(jobs=[job.model_dump(mode="json") for job in found])
        return
    print_table(
        ["STARTED", "KIND", "MACHINE", "POLICY", "OUTCOME", "BYTES", "REASON"],
        (
            (
                job.started.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                job.kind,
                job.machine or "",
                job.policy or "",
                job.outcome or "not ended",
                "" if job.bytes is None else bytes_text(job.bytes),
                job.reason,
            )
            for job in found
        ),
        empty="no jobs yet",
    )
