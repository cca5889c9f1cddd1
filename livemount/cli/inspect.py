"""`livemount inspect`: what the guest in a copy is, what a mount would change in it, and what will not work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from livemount.cli.copies import Output, chosen_copy
from livemount.cli.output import OutputFormat, bytes_text, print_json, stderr, stdout
from livemount.core.errors import ExitCode, UsageError
from livemount.core.machine import Copy, Firmware
from livemount.core.settings import Settings
from livemount.guest.api import Edit, EditKind, GuestReport
from livemount.host.api import Inspection
from livemount.manager.environment import Environment
from livemount.media.foreign import Wanted

SIGNS = {EditKind.ADDED: "[green]+[/]", EditKind.CHANGED: "[yellow]~[/]", EditKind.LINKED: "[green]>[/]"}
COLOURS = {"+": "green", "-": "red", "@": "cyan"}


def inspect(
    copy: Annotated[str, typer.Argument(help="Which copy: NAME (its newest), NAME@latest or NAME@ID.")] = "",
    source: Annotated[
        list[str] | None,
        typer.Option(help="Instead of a copy: the URI of an image, an archive, ...; again for each further disk."),
    ] = None,
    password_file: Annotated[Path | None, typer.Option(help="The file with the secret of the source.")] = None,
    firmware: Annotated[Firmware | None, typer.Option(help="To start it with (else the copy's own).")] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show new texts as well, not only what changes in old.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Say what the guest in a copy is, what a mount would change in it, and what will not work.

    The guest is prepared as for a mount, on the live-mount host, and that is thrown away. Exit code 8: no boot.

    Example: livemount inspect web01@latest

    Example: livemount inspect --source image:///vm/web01.qcow2 --firmware uefi --output json
    """
    if bool(copy) == bool(source) or (copy and password_file):
        raise UsageError("name a copy, or a --source", hint="--password-file goes with --source")
    settings = Settings()
    found, secret = chosen_copy(settings, copy, source, "inspected", password_file, Wanted(firmware, None, None))
    show_inspection(settings, found, secret, firmware, output, diff=diff)


def show_inspection(
    settings: Settings,
    copy: Copy,
    password_file: Path | None,
    firmware: Firmware | None,
    output: OutputFormat,
    *,
    diff: bool = False,
) -> None:
    """Inspect a copy and print what is found; ends with exit code 8 when it does not boot."""
    wanted = firmware or copy.description.firmware
    with stderr.status("preparing the guest in a private store that is thrown away"):
        found = Environment(settings).inspect(copy, wanted, password_file)
    if output is OutputFormat.JSON:
        print_json(copy=f"{copy.name}@{copy.id[:8]}", firmware=wanted, **found.model_dump(mode="json"))
    else:
        _show(copy, wanted, found, diff=diff)
    if not found.bootable:
        raise typer.Exit(int(ExitCode.UNSUPPORTED))


def _show(copy: Copy, firmware: Firmware, found: Inspection, *, diff: bool) -> None:
    name = f"{copy.name}@{copy.id[:8]}"
    if found.report is None:
        stdout.print(f"[bold red]{name} does not boot:[/] {escape(found.reason)}", highlight=False)
        if found.hint:
            stdout.print(f"[bold]way out:[/] {escape(found.hint)}", highlight=False)
    else:
        stdout.print(f"[bold green]{name} boots[/] under {firmware.upper()}", highlight=False)
        _show_report(found.report, diff=diff)
    share = f"{found.recalled / found.size:.1%}" if found.size else "0 %"
    stdout.print(f"  recalled  {bytes_text(found.recalled)} ({share})", highlight=False)


def _show_report(report: GuestReport, *, diff: bool) -> None:
    facts = {
        "system": report.system,
        "root": report.root,
        "firmware": ", ".join(firmware.upper() for firmware in report.firmware),
        "kernels": ", ".join(report.kernels),
        "initrd": report.initrd,
        "network": ", ".join(report.network) or "nothing known",
    }
    for key, value in facts.items():
        stdout.print(f"  {key:9} {escape(value)}", highlight=False)
    for text in report.warnings:
        stdout.print(f"  [bold yellow]warning[/]   {escape(text)}", highlight=False)
    stdout.print(f"  changes   {len(report.edits)} files, in the private store only", highlight=False)
    for edit in report.edits:
        stdout.print(f"    {SIGNS[edit.kind]} {escape(_edit(edit))}", highlight=False)
        if edit.kind is EditKind.CHANGED or (diff and edit.kind is EditKind.ADDED):
            for line in edit.diff.splitlines()[2:]:
                colour = COLOURS.get(line[:1], "default")
                stdout.print(f"        [{colour}]{escape(line)}[/]", highlight=False)


def _edit(edit: Edit) -> str:
    if edit.kind is EditKind.LINKED:
        return f"{edit.path} -> {edit.diff}"
    if edit.kind is EditKind.ADDED:
        return f"{edit.path} ({bytes_text(edit.after)})"
    return f"{edit.path} ({bytes_text(edit.before)} -> {bytes_text(edit.after)})"
