"""`livemount backup`, `copies`, `check`: making copies, listing them, making sure of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from livemount.catalog.api import known_copies, recorded
from livemount.catalog.catalog import JobKind, Outcome
from livemount.cli.output import OutputFormat, bytes_text, print_json, print_table, stderr, stdout, warn
from livemount.core.errors import CorruptError, UsageError
from livemount.core.machine import NAME_PATTERN, Copy, Firmware, MachineDescription, is_name
from livemount.core.settings import Settings
from livemount.media.detect import detect_firmware
from livemount.media.repository import Repository

Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Print a table or versioned JSON.")]


def open_repository(settings: Settings) -> Repository:
    """The repository that the settings name."""
    return Repository.open(settings.repository_path, settings.repository_password)


def _summary(copy: Copy) -> str:
    return f"{copy.name}@{copy.id[:8]}: {bytes_text(copy.size)} disk, {bytes_text(copy.stored)} of it in use"


def backup(
    image: Annotated[Path, typer.Argument(help="The machine's disk: a raw image or a block device.")],
    name: Annotated[str, typer.Option(help="The machine's name.")],
    firmware: Annotated[Firmware | None, typer.Option(help="What starts the machine (else detected).")] = None,
    cpus: Annotated[int, typer.Option(min=1, help="Its processors.")] = 1,
    memory: Annotated[int, typer.Option(min=64, help="Its memory in MiB.")] = 1024,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Put a machine's disk into the repository as a new copy.

    Every copy is complete by itself; what did not change since the last one is stored only once, holes not at all.

    Example: livemount backup /srv/web01.raw --name web01
    """
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name a machine", hint=f"it must match {NAME_PATTERN}")
    settings = Settings()
    repository = open_repository(settings)
    description = MachineDescription(firmware=firmware or detect_firmware(image), cpus=cpus, memory_mib=memory)
    with Progress(
        "backup",
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=stderr,
    ) as bar:
        task = bar.add_task("backup", total=None)
        copy = repository.backup(
            image, name, description, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if output is OutputFormat.JSON:
        print_json(copy=copy.model_dump(mode="json"))
    else:
        stdout.print(_summary(copy))


def copies(
    name: Annotated[str | None, typer.Argument(help="Only this machine's.")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the copies in the repository, oldest first."""
    settings = Settings()
    found = known_copies(settings, open_repository(settings), warn, name)
    if output is OutputFormat.JSON:
        print_json(copies=[copy.model_dump(mode="json") for copy in found])
        return
    print_table(
        ["COPY", "TIME", "DISK", "IN USE", "FIRMWARE", "CPUS", "MEMORY"],
        (
            (
                f"{copy.name}@{copy.id[:8]}",
                copy.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                bytes_text(copy.size),
                bytes_text(copy.stored),
                copy.description.firmware,
                copy.description.cpus,
                f"{copy.description.memory_mib} MiB",
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
