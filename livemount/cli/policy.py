"""`livemount policy`: what is backed up when, how long it is kept."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from livemount.cli.backup import progress_bar
from livemount.cli.copies import Output, summary
from livemount.cli.output import OutputFormat, print_json, print_table, stdout, warn
from livemount.core.errors import UsageError
from livemount.core.settings import Settings
from livemount.policies.applied import Applied, Change, open_policies, runner_of
from livemount.policies.policy import Policy, Purpose
from livemount.policies.reading import read_policy
from livemount.policies.run import Occasion, alone, back_up, forget
from livemount.policies.schedule import due_after
from livemount.policies.schema import schema_text

app = typer.Typer(no_args_is_help=True, help="Backup policies: what is backed up when, and how long it is kept.")

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files, one policy each.")]
Name = Annotated[str, typer.Argument(help="The policy's name.")]


def _read(files: list[Path]) -> list[Policy]:
    policies: dict[str, Policy] = {}
    for file in files:
        policy = read_policy(file)
        if policy.name in policies:
            raise UsageError(f"{file}: name: another file has the policy {policy.name} as well")
        policies[policy.name] = policy
    return list(policies.values())


@app.command()
def validate(files: Files) -> None:
    """Say what is wrong with policies' files; nothing is changed.

    Example: livemount policy validate /etc/livemount/policies/*.yaml
    """
    for policy in _read(files):
        stdout.print(f"{policy.name}: next at {_next(policy)[Purpose.BACKUP].isoformat()}", highlight=False)


@app.command()
def apply(
    files: Files,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would change.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Bring policies into force, or to what their files say now; the chosen environment's manager runs them.

    All files are read before anything is changed. Applied again without a change, nothing happens.

    Example: livemount policy apply /etc/livemount/policies/*.yaml
    """
    settings = Settings()
    wanted = _read(files)
    with open_policies(settings) as policies:
        done = {policy.name: policies.apply(policy, runner_of(settings), plan_only=dry_run) for policy in wanted}
    if output is OutputFormat.JSON:
        changed = {name: [change.model_dump() for change in changes] for name, changes in done.items()}
        print_json(dry_run=dry_run, changes=changed)
        return
    for name, changes in done.items():
        stdout.print(f"{name}: {'changed' if changes else 'as it was'}", highlight=False)
        for change in changes:
            stdout.print(f"  {_line(change)}", highlight=False, markup=False)


def _line(change: Change) -> str:
    if change.before is None:
        return f"+ {change.field}: {change.after}"
    if change.after is None:
        return f"- {change.field}: {change.before}"
    return f"~ {change.field}: {change.before} -> {change.after}"


def _next(policy: Policy) -> dict[Purpose, datetime]:
    now = datetime.now(UTC)
    return {purpose: due_after(when, policy.time_zone, now) for purpose, when in policy.times().items()}


def _shown(applied: Applied) -> dict[str, Any]:
    following = {} if applied.suspended else {str(key): time.isoformat() for key, time in _next(applied.policy).items()}
    policy = applied.policy.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return {
        "policy": policy,
        "runner": applied.runner,
        "suspended": applied.suspended,
        "since": applied.since.isoformat(),
        "next": following,
    }


@app.command("list")
def list_(output: Output = OutputFormat.TABLE) -> None:
    """List the policies in force."""
    with open_policies(Settings()) as policies:
        found = policies.all(warn)
    if output is OutputFormat.JSON:
        print_json(policies=[_shown(applied) for applied in found])
        return
    print_table(
        ["POLICY", "MACHINE", "WHEN", "TIME ZONE", "NEXT", "RUN BY"],
        (
            (
                applied.policy.name,
                applied.policy.machine,
                applied.policy.when,
                applied.policy.time_zone,
                "suspended"
                if applied.suspended
                else _next(applied.policy)[Purpose.BACKUP].astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                applied.runner,
            )
            for applied in found
        ),
        empty="no policies yet; `livemount policy apply FILE` brings one into force",
    )


@app.command()
def show(name: Name, output: Output = OutputFormat.TABLE) -> None:
    """Show a policy in force, all its times and who runs it."""
    with open_policies(Settings()) as policies:
        applied = policies.get(name)
    shown = _shown(applied)
    if output is OutputFormat.JSON:
        print_json(**shown)
        return
    for field, value in {**shown.pop("policy"), **shown}.items():
        stdout.print(f"{field}: {value}", highlight=False, markup=False)


@app.command()
def run(name: Name, output: Output = OutputFormat.TABLE) -> None:
    """Do now what a policy says: make a copy, then forget what its rules do not keep. A suspended one runs as well.

    Example: livemount policy run web01-nightly
    """
    settings = Settings()
    with open_policies(settings) as policies:
        policy = policies.get(name).policy
    occasion = Occasion(purpose=Purpose.BACKUP, due=datetime.now(UTC), scheduled=False)
    job = uuid.uuid4().hex
    with alone(settings, policy):
        with progress_bar() as tell:
            made = back_up(settings, policy, occasion, job, warn, tell)
        forgotten = forget(settings, policy, job, warn)
    if output is OutputFormat.JSON:
        print_json(copy=made.copy.model_dump(mode="json"), read=made.read, added=made.added, forgotten=forgotten)
    else:
        stdout.print(f"{summary(made.copy)}; {forgotten} older copies forgotten", highlight=False)


@app.command()
def suspend(name: Name) -> None:
    """Do not run a policy until `livemount policy resume`; what runs goes on."""
    with open_policies(Settings()) as policies:
        policies.suspend(name, suspended=True)
    stdout.print(f"{name} is suspended", highlight=False)


@app.command()
def resume(name: Name) -> None:
    """Run a suspended policy again; what was due meanwhile is left out."""
    with open_policies(Settings()) as policies:
        policies.suspend(name, suspended=False)
    stdout.print(f"{name} is in force again", highlight=False)


@app.command()
def remove(name: Name) -> None:
    """Put a policy out of force. Its copies and jobs stay."""
    with open_policies(Settings()) as policies:
        policies.remove(name)
    stdout.print(f"{name} is removed; its copies stay", highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of a policy's file, for editors (it is in docs/policy.schema.json as well)."""
    typer.echo(schema_text(), nl=False)
