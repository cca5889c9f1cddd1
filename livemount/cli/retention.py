"""`livemount forget`, `prune`, `hold`, `release`: how long copies are kept, and the room that old ones took."""

from __future__ import annotations

from typing import Annotated

import typer

from livemount.catalog.api import recorded
from livemount.catalog.catalog import JobKind
from livemount.cli.copies import Output, open_repository
from livemount.cli.output import OutputFormat, bytes_text, print_json, print_table, stdout, warn
from livemount.core.errors import UsageError
from livemount.core.settings import Settings
from livemount.media.repository import Rules

Count = Annotated[int | None, typer.Option(min=-1, metavar="N")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be done.")]


def forget(
    name: Annotated[str | None, typer.Argument(help="Only this machine's copies.")] = None,
    keep_last: Count = None,
    keep_hourly: Count = None,
    keep_daily: Count = None,
    keep_weekly: Count = None,
    keep_monthly: Count = None,
    keep_yearly: Count = None,
    keep_within: Annotated[
        str | None, typer.Option(metavar="SPAN", help="All since so long before the newest: 30d, 6mo.")
    ] = None,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Forget old copies, of each machine by itself. A copy that is mounted or held is always kept.

    --keep-last keeps the N newest copies; --keep-daily and the like the newest of each of the N newest days that have
    one. What any rule keeps is kept. `livemount prune` gives back the room.

    Example: livemount forget --keep-daily 7 --keep-weekly 4 --keep-monthly 12
    """
    rules = Rules(
        keep_last=keep_last,
        keep_hourly=keep_hourly,
        keep_daily=keep_daily,
        keep_weekly=keep_weekly,
        keep_monthly=keep_monthly,
        keep_yearly=keep_yearly,
        keep_within=keep_within,
    )
    if rules == Rules():
        raise UsageError("no rule says what to keep", hint="for example --keep-daily 7")
    settings = Settings()
    with recorded(settings, JobKind.FORGET, None if dry_run else warn, machine=name) as job:
        decisions = open_repository(settings).forget(rules, name, plan_only=dry_run)
        job.reason = f"{sum(not each.kept for each in decisions)} of {len(decisions)} copies forgotten"
    if output is OutputFormat.JSON:
        print_json(
            dry_run=dry_run,
            copies=[
                {"copy": each.copy.model_dump(mode="json"), "kept": each.kept, "reasons": each.reasons}
                for each in decisions
            ],
        )
        return
    gone = "would be forgotten" if dry_run else "forgotten"
    print_table(
        ["COPY", "TIME", "", "BECAUSE OF"],
        (
            (
                f"{each.copy.name}@{each.copy.id[:8]}",
                each.copy.time.astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                "kept" if each.kept else gone,
                ", ".join(each.reasons),
            )
            for each in decisions
        ),
        empty="no copies",
    )


def prune(
    max_unused: Annotated[int, typer.Option(min=0, max=100, help="Per cent that may stay unused in packs.")] = 5,
    dry_run: DryRun = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Give back the room that no copy needs any more.

    Runs beside mounts, not beside backups. What is not needed is marked first; a prune a day later deletes it.
    """
    settings = Settings()
    with recorded(settings, JobKind.PRUNE, None if dry_run else warn) as job:
        done = open_repository(settings).prune(plan_only=dry_run, max_unused=max_unused)
        job.bytes = done.deleted
    if output is OutputFormat.JSON:
        print_json(dry_run=dry_run, **done.model_dump())
        return
    will = "would be " if dry_run else ""
    stdout.print(
        f"{bytes_text(done.deleted)} {will}deleted, {bytes_text(done.marked)} {will}marked for a prune a day from now,"
        f" {bytes_text(done.repacked)} {will}repacked",
        highlight=False,
    )


def hold(
    copy: Annotated[str, typer.Argument(help="Which copy: NAME, NAME@latest or NAME@ID.")],
    reason: Annotated[str, typer.Option(help="Why, for those who come later.")] = "held",
) -> None:
    """Keep a copy whatever the rules say, until `livemount release`."""
    repository = open_repository(Settings())
    found = repository.find(copy)
    repository.pins.pin(f"hold.{found.id}", found.id, reason)
    stdout.print(f"{found.name}@{found.id[:8]} is held", highlight=False)


def release(copy: Annotated[str, typer.Argument(help="Which copy: NAME, NAME@latest or NAME@ID.")]) -> None:
    """Leave a copy that was held to the rules again."""
    repository = open_repository(Settings())
    found = repository.find(copy)
    repository.pins.unpin(f"hold.{found.id}")
    stdout.print(f"{found.name}@{found.id[:8]} is not held", highlight=False)
