"""`livemount repository`: the place where copies are kept."""

from __future__ import annotations

from typing import Annotated

import typer

from livemount.cli.output import stdout
from livemount.core.secrets import secret_file
from livemount.core.settings import Settings
from livemount.media.repository import Repository

app = typer.Typer(no_args_is_help=True, help="The repository: where copies are kept (restic format, always encrypted).")


@app.command()
def init(
    append_only: Annotated[
        bool, typer.Option("--append-only", help="Nothing in it can ever be forgotten or pruned by livemount.")
    ] = False,
) -> None:
    """Make the repository (LIVEMOUNT_REPOSITORY), and its password file where there is none.

    Without the password file no copy can be read again, by anybody: keep a second copy of it somewhere safe.

    Example: LIVEMOUNT_REPOSITORY=/mnt/vault livemount repository init --append-only
    """
    settings = Settings()
    password = secret_file(settings.repository_password)
    Repository.init(settings.repository_path, password, append_only=append_only)
    kind = "append-only repository" if append_only else "repository"
    stdout.print(f"{kind} {settings.repository_path} is ready; its password is in {password}: keep a copy of that file")
