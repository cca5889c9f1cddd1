"""`livemount catalog`: what is known of copies and jobs without asking the repository."""

from __future__ import annotations

import typer

from livemount.catalog.api import rebuild
from livemount.cli.copies import Output, open_repository
from livemount.cli.output import OutputFormat, print_json, stdout, warn
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
