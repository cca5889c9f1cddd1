"""`livemount plan`, `apply`, `drift`, `validate`, `schema`: mounts declared by the files of a folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from livemount.cli.copies import Output, chosen_copy
from livemount.cli.output import OutputFormat, local_time, print_json, print_line, print_table, stderr, stdout, warn
from livemount.core.errors import ExitCode, LivemountError, UsageError
from livemount.core.settings import Settings
from livemount.gitops.apply import Plan, applying, make_plan, settle
from livemount.gitops.apply import apply as apply_plan
from livemount.gitops.drift import drift as compare
from livemount.gitops.drift import of_set
from livemount.gitops.folder import files_of, read_files, read_folder
from livemount.gitops.markdown import SIGNS, counts, drift_markdown, plan_markdown
from livemount.gitops.plan import Action, Step
from livemount.gitops.spec import schema_text
from livemount.manager.client import Manager, MountFailedError
from livemount.manager.environment import Environment
from livemount.workflow.states import MountRecord, MountState

CHANGES = 2
"""With --detailed-exitcode: there are differences."""


class Format(StrEnum):
    """How a comparison is printed."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"


Folder = Annotated[Path, typer.Argument(help="The folder with the files of mounts, *.yaml.")]
SetName = Annotated[
    str | None,
    typer.Option("--set", metavar="NAME", help="Which set the folder's mounts are (else the folder's name)."),
]
Prune = Annotated[bool, typer.Option("--prune", help="End the set's mounts that no file names any more.")]
AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="A folder without files is meant to be so.")]
Detailed = Annotated[
    bool, typer.Option("--detailed-exitcode", help="Exit with 0: no differences, 1: an error, 2: differences.")
]
Printed = Annotated[Format, typer.Option("--output", "-o", help="Print a table, versioned JSON, or Markdown.")]


@contextmanager
def _one_code_for_errors(detailed: bool) -> Iterator[None]:
    """With --detailed-exitcode 2 has another meaning, so that all errors are 1."""
    try:
        yield
    except LivemountError as error:
        if detailed:
            error.exit_code = ExitCode.FAILURE
        raise


def _set_name(folder: Path, wanted: str | None) -> str:
    name = folder.resolve().name if wanted is None else wanted
    if not name or len(name) > 200 or not name.isprintable():
        raise UsageError(f"{name!r} cannot name a set of mounts", hint="--set NAME: up to 200 printable characters")
    return name


def plan(
    folder: Folder,
    set_name: SetName = None,
    prune: Prune = False,
    allow_empty: AllowEmpty = False,
    detailed_exitcode: Detailed = False,
    output: Printed = Format.TABLE,
) -> None:
    """Say what `livemount apply` would do; nothing is changed.

    Example: livemount plan mounts --detailed-exitcode --output markdown > comment.md
    """
    with _one_code_for_errors(detailed_exitcode):
        settings = Settings()
        specs = read_folder(folder, allow_empty=allow_empty)
        with closing(Manager(settings.paths())) as manager:
            wanted = make_plan(settings, manager, specs, _set_name(folder, set_name), chosen_copy, prune=prune)
    _print_plan(wanted, output)
    if detailed_exitcode and wanted.changes:
        raise typer.Exit(CHANGES)


def apply(
    folder: Folder,
    set_name: SetName = None,
    prune: Prune = False,
    allow_empty: AllowEmpty = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until guests are up, and ends are over.")] = True,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Bring the mounts to what the files of a folder say. The same again changes nothing.

    All files, copies and sources are looked at before anything is changed. Killed half-way it is just run again.

    Example: livemount apply mounts --prune
    """
    settings = Settings()
    specs = read_folder(folder, allow_empty=allow_empty)
    name = _set_name(folder, set_name)
    with closing(Manager(settings.paths())) as manager:
        with applying(settings.paths()):
            wanted = make_plan(settings, manager, specs, name, chosen_copy, prune=prune)
            if output is OutputFormat.TABLE:
                _print_plan(wanted, Format.TABLE)
            apply_plan(manager, wanted, lambda text: stderr.print(text, highlight=False, markup=False))
        done = settle(manager, wanted) if wait else {}
    if output is OutputFormat.JSON:
        print_json(**_json(wanted), mounts={mount: _became(record) for mount, record in done.items()})
    else:
        for mount, record in done.items():
            stdout.print(f"{mount}: {record.state} ({record.reason})", highlight=False, markup=False)
    failed = [step.mount for step in wanted.changes if step.mount in done and not _as_wanted(step, done[step.mount])]
    if failed:
        causes = "\n".join(f"{mount}: {done[mount].error or done[mount].reason}" for mount in failed)
        raise MountFailedError(causes, hint="`livemount show MOUNT` tells its history; `livemount apply` tries again")


def _as_wanted(step: Step, record: MountRecord) -> bool:
    if step.action is Action.END:
        return record.state.final and not record.left
    return record.state is MountState.RUNNING


def _became(record: MountRecord) -> dict[str, object]:
    return {
        "state": record.state,
        "reason": record.reason,
        "error": record.error,
        "address": record.outputs.get("address"),
    }


def _json(wanted: Plan) -> dict[str, object]:
    steps = [
        {
            **step.model_dump(mode="json"),
            "copy": wanted.orders[step.mount].copy_.id if step.mount in wanted.orders else None,
        }
        for step in wanted.steps
    ]
    return {"set": wanted.set, "changes": len(wanted.changes), "steps": steps}


def _print_plan(wanted: Plan, output: Format) -> None:
    if output is Format.JSON:
        print_json(**_json(wanted))
        return
    if output is Format.MARKDOWN:
        print_line(plan_markdown(wanted.set, wanted.steps).rstrip("\n"))
        return
    for step in wanted.steps:
        order = wanted.orders.get(step.mount)
        what = f" of {order.copy_.name}@{order.copy_.id[:8]}" if order else ""
        ends = f", ends {local_time(step.expires)}" if step.expires and step.action is not Action.NOTHING else ""
        print_line(f"{SIGNS[step.action]} {step.mount}: {step.action}{what} ({step.reason}{ends})")
        for change in step.changes:
            print_line(f"      {change.field}: {_value(change.before)} -> {_value(change.after)}")
    print_line(f"the set {wanted.set}: {counts(wanted.steps)}")


def _value(value: object) -> str:
    return "(not given)" if value is None else str(value)


def drift(set_name: SetName = None, detailed_exitcode: Detailed = False, output: Printed = Format.TABLE) -> None:
    """Say what differs from what was applied: mounts that failed, were ended or extended by hand, or lost their disk.

    Example: livemount drift --detailed-exitcode
    """
    with _one_code_for_errors(detailed_exitcode):
        settings = Settings()
        with closing(Manager(settings.paths())) as manager:
            records = of_set(manager.records(ended=True), set_name)
        disks = None
        if any(record.state in (MountState.BOOTING, MountState.RUNNING) for record in records):
            try:
                disks = Environment(settings).disks()
            except LivemountError as error:
                if detailed_exitcode:
                    raise
                warn(f"nothing is known of the disks: {error}")
    found = compare(records, disks, datetime.now(UTC))
    if output is Format.JSON:
        print_json(drift=[each.model_dump(mode="json") for each in found])
    elif output is Format.MARKDOWN:
        print_line(drift_markdown(found).rstrip("\n"))
    else:
        print_table(
            ["MOUNT", "SET", "DIFFERENCE", "APPLIED", "FOUND", "REPAIRED BY APPLY"],
            (
                (
                    each.mount,
                    each.set,
                    each.problem,
                    each.applied,
                    each.found,
                    "yes" if each.repaired_by_apply else "no",
                )
                for each in found
            ),
            empty="all is as it was applied",
        )
    if detailed_exitcode and found:
        raise typer.Exit(CHANGES)


def validate(
    places: Annotated[list[Path], typer.Argument(metavar="FILE|FOLDER...", help="Files of mounts, or their folders.")],
) -> None:
    """Say what is wrong with files of mounts: file, line and field. Asks no service, so it runs anywhere.

    Example: livemount validate mounts
    """
    files = _files(places)
    specs = read_files(files)
    stdout.print(f"{len(specs)} {'file is' if len(specs) == 1 else 'files are'} good", highlight=False)


def _files(places: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        found += files_of(place) if place.is_dir() else [place]
    return list(dict.fromkeys(found))


def schema() -> None:
    """Print the JSON schema of a mount's file, for editors (it is in docs/mount.schema.json as well)."""
    typer.echo(schema_text(), nl=False)
