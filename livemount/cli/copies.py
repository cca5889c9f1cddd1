"""`livemount copies`, `check`: listing the copies, making sure of them."""

from __future__ import annotations

from typing import Annotated

import typer

from livemount.cli.output import OutputFormat, bytes_text, print_json, print_table, stderr, stdout
from livemount.core.errors import CorruptError
from livemount.core.machine import Copy
from livemount.core.settings import Settings
from livemount.media.repository import Repository

Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Print a table or versioned JSON.")]


def open_repository(settings: Settings) -> Repository:
    """The repository that the settings name."""
    return Repository.open(settings.repository_path, settings.repository_password)


def summary(copy: Copy) -> str:
    """A copy in a few words."""
    disks = "disk" if len(copy.disks) < 2 else f"on {len(copy.disks)} disks"
    return f"{copy.name}@{copy.id[:8]}: {bytes_text(copy.size)} {disks}, {bytes_text(copy.stored)} of it in use"


def copies(
    name: Annotated[str | None, typer.Argument(help="Only this machine's.")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the copies in the repository, oldest first; of several disks, * is the one that the machine starts from."""
    found = open_repository(Settings()).copies(name)
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
    report = open_repository(Settings()).check(percent)
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
