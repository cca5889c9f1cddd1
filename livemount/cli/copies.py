"""`livemount copies`, `check`: listing the copies, making sure of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livemount.catalog.api import find_copy, known_copies, recorded
from livemount.catalog.catalog import JobKind, Outcome
from livemount.cli.output import OutputFormat, bytes_text, print_json, print_table, stderr, stdout, warn
from livemount.core.errors import CorruptError
from livemount.core.machine import Copy
from livemount.core.settings import Settings
from livemount.media.agent_copies import AgentCopies
from livemount.media.agents import AgentUri
from livemount.media.foreign import Wanted, copy_of_sources
from livemount.media.repository import Repository

Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Print a table or versioned JSON.")]


def open_repository(settings: Settings) -> Repository:
    """The repository that the settings name."""
    return Repository.open(settings.repository_path, settings.repository_password)


def mountable_copies(settings: Settings, name: str | None = None) -> list[Copy]:
    """The copies (of one machine): those of the repository, or of one that a media agent reads for us."""
    if settings.agent:
        return _agent_copies(settings).copies(name)
    return known_copies(settings, open_repository(settings), warn, name)


def mountable_copy(settings: Settings, reference: str) -> Copy:
    """The one of them that `NAME`, `NAME@latest` or `NAME@ID` names."""
    if settings.agent:
        return _agent_copies(settings).find(reference)
    return find_copy(settings, open_repository(settings), warn, reference)


def chosen_copy(
    settings: Settings,
    reference: str,
    source: list[str] | None,
    name: str,
    password_file: Path | None,
    wanted: Wanted,
) -> tuple[Copy, Path | None]:
    """The copy that is named, or what `--source` names as one called `name`; and the file with its secret."""
    if source:
        shown = settings.client_certificates
        uris = [str(AgentUri.parse(uri, shown)) if uri.startswith("agent:") else uri for uri in source]
        return copy_of_sources(uris, password_file, name, wanted), password_file and password_file.absolute()
    secret = None if settings.agent else settings.repository_password
    return mountable_copy(settings, reference), secret and secret.absolute()


def _agent_copies(settings: Settings) -> AgentCopies:
    return AgentCopies(AgentUri.parse(settings.agent, settings.client_certificates))


def summary(copy: Copy) -> str:
    """A copy in a few words."""
    disks = "disk" if len(copy.disks) < 2 else f"on {len(copy.disks)} disks"
    return f"{copy.name}@{copy.id[:8]}: {bytes_text(copy.size)} {disks}, {bytes_text(copy.stored)} of it in use"


def copies(
    name: Annotated[str | None, typer.Argument(help="Only this machine's.")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the copies in the repository, oldest first; of several disks, * is the one that the machine starts from."""
    found = mountable_copies(Settings(), name)
    if output is OutputFormat.JSON:
        print_json(copies=[copy.model_dump(mode="json") for copy in found])
        return
    print_table(
        ["COPY", "TIME", "DISKS", "IN USE", "FIRMWARE", "CPUS", "MEMORY", "TAGS"],
        (
            (
                f"{copy.name}@{copy.id[:8]}",
                copy.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                " + ".join(
                    f"{bytes_text(disk.size)}{'*' * (disk.boot and len(copy.disks) > 1)}" for disk in copy.disks
                ),
                bytes_text(copy.stored),
                copy.description.firmware,
                copy.description.cpus,
                f"{copy.description.memory_mib} MiB",
                ", ".join(copy.description.tags),
            )
            for copy in found
        ),
        empty="no copies yet; `livemount backup IMAGE --name NAME` makes one",
    )


def check(
    read_data: Annotated[bool, typer.Option("--read-data", help="Read and verify every stored byte too.")] = False,
    sample: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="Verify this part of the data, chosen by chance.")
    ] = 0,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Check the repository: its structure and, when asked, its data. Exit code 9 when something is wrong.

    Example: livemount check --sample 5    # every night; in a year hardly a byte is left out
    """
    percent = 100.0 if read_data else sample
    settings = Settings()
    with recorded(settings, JobKind.CHECK, warn) as job:
        report = open_repository(settings).check(percent)
        if report.ok:
            job.reason = f"{percent:g} % of the data read"
        else:
            job.outcome, job.reason = Outcome.FAILED, "; ".join(report.problems)
    if output is OutputFormat.JSON:
        print_json(ok=report.ok, read_percent=percent, problems=report.problems, leftovers=report.leftovers)
    else:
        for leftover in report.leftovers:
            stderr.print(f"left over: {leftover}", highlight=False, markup=False)
    if not report.ok:
        raise CorruptError(
            f"the repository is damaged: {'; '.join(report.problems)}",
            hint="restore the files named from another copy of the repository",
        )
    if output is OutputFormat.TABLE:
        read = {0.0: "", 100.0: ", all data read"}.get(percent, f", {percent:g} % of the data read")
        stdout.print("no errors found" + read)
