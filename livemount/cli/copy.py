"""`livemount copy`: copies in a second repository as well."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from livemount.catalog.api import recorded
from livemount.catalog.catalog import JobKind
from livemount.cli.copies import Output, open_repository
from livemount.cli.output import OutputFormat, bytes_text, print_json, stderr, stdout, warn
from livemount.core.errors import UsageError
from livemount.core.settings import Settings
from livemount.media.repository import Repository


def copy(
    to: Annotated[str, typer.Option(metavar="REPOSITORY", help="The other repository; `repository init` makes it.")],
    copies: Annotated[
        list[str] | None, typer.Argument(metavar="COPY...", help="NAME (its newest copy), NAME@latest or NAME@ID.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All copies of the repository.")] = False,
    name: Annotated[str | None, typer.Option(help="All copies of this machine.")] = None,
    to_password_file: Annotated[
        Path | None, typer.Option(help="Its password file (else LIVEMOUNT_PASSWORD_FILE).")
    ] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Copy copies to a second repository: an auxiliary copy, complete by itself.

    Only what the other does not have is copied, each chunk checked. Give the same command again after it was
    interrupted, and as often as wanted: what is there already stays as it is.

    Example: livemount copy web01 db01@1a2b3c4d --to /mnt/vault/repository --to-password-file /etc/vault-password

    Example: livemount copy --all --to /mnt/vault/repository
    """
    if bool(copies) + everything + (name is not None) != 1:
        raise UsageError("which copies are meant is not told", hint="give some, or --name NAME, or --all")
    settings = Settings()
    repository = open_repository(settings)
    other = Repository.open(to, to_password_file or settings.repository_password)
    found = [repository.find(reference) for reference in copies] if copies else repository.copies(name)
    if name is not None and not found:
        repository.find(name)  # says what there is
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with (
        recorded(settings, JobKind.COPY, warn, machine=name) as job,
        Progress("copy", *columns, console=stderr) as bar,
    ):
        task = bar.add_task("copy", total=None)
        done = repository.copy_to(
            other, found, lambda read, total: bar.update(task, completed=read, total=total or None)
        )
        job.reason, job.bytes = f"{sum(each.now for each in done.copies)} of {len(found)} to {to}", done.added
    if output is OutputFormat.JSON:
        print_json(
            copies=[
                {"copy": mine.model_dump(mode="json"), "id": theirs.copy_id, "copied": theirs.now}
                for mine, theirs in zip(found, done.copies, strict=True)
            ],
            read=done.read,
            added=done.added,
        )
        return
    for mine, theirs in zip(found, done.copies, strict=True):
        state = "copied" if theirs.now else "is there already"
        stdout.print(f"{mine.name}@{mine.id[:8]} {state}: {mine.name}@{theirs.copy_id[:8]}", highlight=False)
    stdout.print(f"{bytes_text(done.read)} copied, {bytes_text(done.added)} added", highlight=False)
