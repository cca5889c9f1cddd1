"""`livemount backup`: a machine's disks into the repository, and what is known of the machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TimeRemainingColumn, TransferSpeedColumn

from livemount.catalog.api import recorded
from livemount.catalog.catalog import JobKind
from livemount.cli.copies import Output, open_repository, summary
from livemount.cli.output import OutputFormat, bytes_text, print_json, stderr, stdout, warn
from livemount.core.errors import NotFoundError, UsageError
from livemount.core.machine import NAME_PATTERN, Firmware, MachineDescription, is_name
from livemount.core.settings import Settings
from livemount.inside.describe import described
from livemount.media.disks import Changes, DiskInput, source_uri
from livemount.media.repository import Made, Repository, Wanted

MAX_DESCRIPTION = 1 << 20


def _place(text: str) -> Path | str:
    return text if "://" in text else Path(text)


def _read_description(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_DESCRIPTION:
            raise UsageError(f"the description {file} has more than {MAX_DESCRIPTION} bytes")
        data = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no description {file}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the description {file} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise UsageError(f"the description {file} is no JSON object")
    return data


def _interface(text: str) -> dict[str, str]:
    mac, _, model = text.partition(",")
    return {"mac": mac.lower().replace("-", ":"), "model": model}


def _told_disks(data: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """What a description says of each disk: name, serial, boot. The rest is as the disks are."""
    told = data.pop("disks", None) or [{}] * count
    if not isinstance(told, list) or len(told) != count or not all(isinstance(disk, dict) for disk in told):
        raise UsageError(f"the description does not have {count} disks, as there are to back up")
    return told


def _tell(bar: Progress, task: TaskID, done: int, total: int) -> None:
    bar.update(task, completed=done, total=total or None)


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar of a backup; gives what it is told by."""
    columns = (BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("backup", *columns, console=stderr) as bar:
        yield partial(_tell, bar, bar.add_task("backup", total=None))


def _make_files(
    repository: Repository,
    given: DiskInput,
    name: str,
    machine: MachineDescription,
    tell: Callable[[int, int], None],
    tags: tuple[str, ...],
) -> Made:
    """Copy the files of a folder, or of the system on an image."""
    # Imported late: only this needs the driver.
    from livemount.inside.api import opened

    if isinstance(given.place, Path) and not given.place.is_file():
        return repository.make_files(given.place, name, described(machine, given), tell, tags)
    with opened(source_uri(given.place), given.password_file) as image:
        for note in image.notes:
            warn(note)
        machine = machine.model_copy(update={"system": machine.system or image.system})
        return repository.make_files(image.folder, name, machine, tell, tags, across=True)


def _make(
    repository: Repository,
    inputs: Sequence[DiskInput],
    name: str,
    machine: MachineDescription,
    tell: Callable[[int, int], None],
    wanted: Wanted,
) -> Made:
    """Copy disks, bytes as they are."""
    if wanted.boot < len(inputs):
        machine = described(machine, inputs[wanted.boot])
    return repository.make(inputs, name, machine, tell, wanted)


def backup(
    disks: Annotated[
        list[str], typer.Argument(metavar="DISK...", help="A raw image, a block device, or a source's URI; in order.")
    ],
    name: Annotated[str, typer.Option(help="The machine's name.")],
    tag: Annotated[list[str] | None, typer.Option(help="A word to find the copy by; may be repeated.")] = None,
    boot: Annotated[int | None, typer.Option(min=0, help="The disk that the machine starts from (else 0).")] = None,
    changes: Annotated[
        list[Path] | None, typer.Option(help="A JSON file: what changed on a disk since a copy; all else is not read.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="The copy that a dirty bitmap or list of changes begins with.")
    ] = None,
    files: Annotated[
        bool,
        typer.Option("--files", help="Copy files: of the folder a root is mounted on, or of an image's system."),
    ] = False,
    read_all: Annotated[bool, typer.Option("--read-all", help="Read also what is known not to have changed.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read the disks again, all of them, and compare.")] = False,
    password_file: Annotated[Path | None, typer.Option(help="The file with the secret of the sources.")] = None,
    description: Annotated[
        Path | None, typer.Option(help="A JSON file that describes the machine; options go before it.")
    ] = None,
    firmware: Annotated[Firmware | None, typer.Option(help="What starts the machine (else detected).")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, max=512, help="Its processors (else 1).")] = None,
    memory: Annotated[int | None, typer.Option(min=64, help="Its memory in MiB (else 1024).")] = None,
    interface: Annotated[
        list[str] | None, typer.Option(metavar="MAC[,MODEL]", help="A network interface; may be repeated.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="Its operating system.")] = None,
    hypervisor: Annotated[str | None, typer.Option(help="Where it runs.")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Put a machine's disks into the repository as a new copy.

    Every copy is complete by itself; what did not change since the last one is stored only once, holes not at all. A
    backup that was killed goes on where it was when it is given again.

    Example: livemount backup /srv/web01.raw /srv/web01-data.raw --name web01

    Example: livemount backup --files /mnt/web01 --name web01

    Example: livemount backup --files /srv/web01.raw --name web01

    Example: livemount backup 'image:///vm/db01.qcow2?bitmap=livemount-1a2b3c4d' --name db01
    """
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name a machine", hint=f"it must match {NAME_PATTERN}")
    for word in tag or []:
        if not word or "," in word or not word.isprintable() or len(word) > 100:
            raise UsageError(f"{word!r} cannot be a tag", hint="up to 100 characters, no comma")
    data = _read_description(description) if description is not None else {}
    told = _told_disks(data, len(disks))
    options = {
        "firmware": firmware,
        "cpus": cpus,
        "memory_mib": memory,
        "interfaces": [_interface(text) for text in interface] if interface else None,
        "system": system,
        "hypervisor": hypervisor,
    }
    data |= {key: value for key, value in options.items() if value is not None}
    try:
        machine = MachineDescription.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"the machine's description is malformed: {where}: {first['msg']}") from error
    if files and (len(disks) != 1 or changes or since or read_all or verify or boot):
        raise UsageError("--files takes one folder or image, and nothing that is said of disks")
    lists = {known.disk: known for known in (Changes.load(file, since) for file in changes or [])}
    if len(lists) != len(changes or []) or any(number >= len(disks) for number in lists):
        raise UsageError("the lists of changes are not one a disk", hint='each names its disk: {"disk": 1, ...}')
    inputs = [
        DiskInput(
            place=_place(text),
            password_file=password_file if "://" in text else None,
            name=str(what.get("name", "")),
            serial=str(what.get("serial", "")),
            changes=lists.get(number),
        )
        for number, (text, what) in enumerate(zip(disks, told, strict=True))
    ]
    starts = [number for number, what in enumerate(told) if what.get("boot")]
    wanted = Wanted(
        boot=boot if boot is not None else starts[0] if starts else 0,
        since=since,
        read_all=read_all,
        verify=verify,
        detect_firmware="firmware" not in data,
        tags=tuple(tag or ()),
    )
    settings = Settings()
    repository = open_repository(settings)
    with recorded(settings, JobKind.BACKUP, warn, machine=name) as job, progress_bar() as tell:
        made = (
            _make_files(repository, inputs[0], name, machine, tell, wanted.tags)
            if files
            else _make(repository, inputs, name, machine, tell, wanted)
        )
        job.reason, job.bytes, job.copy_id = f"{name}@{made.copy.id[:8]}", made.added, made.copy.id
    if output is OutputFormat.JSON:
        print_json(copy=made.copy.model_dump(mode="json"), read=made.read, added=made.added)
    else:
        stdout.print(f"{summary(made.copy)}; {bytes_text(made.read)} read, {bytes_text(made.added)} added")
