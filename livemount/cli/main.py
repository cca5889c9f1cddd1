"""The command `livemount`: reads the options common to all commands, and turns errors into messages and exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from livemount import __version__
from livemount.cli import (
    agent,
    backup,
    catalog,
    changes,
    copies,
    copy,
    doctor,
    environment,
    gitops,
    inspect,
    jobs,
    mounts,
    policy,
    report,
    repository,
    retention,
    sizes,
    webhook,
)
from livemount.cli.output import stderr
from livemount.core.errors import ExitCode, LivemountError

app = typer.Typer(
    name="livemount",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="""Boot a virtual machine in a cloud straight from its backup copy, without restoring it first.

A first session:

  livemount repository init

  livemount backup disk.raw --name web01

  livemount environment up

  livemount mount web01 --ttl 15m

  livemount unmount web01

Where things are is read from the environment: LIVEMOUNT_HOME (default /var/lib/livemount), LIVEMOUNT_ENVIRONMENT
(local), LIVEMOUNT_REPOSITORY, LIVEMOUNT_PASSWORD_FILE; LIVEMOUNT_AGENT for copies that only a media agent can read.
""",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"livemount {__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every program that is run, to stderr.")] = False,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """What all commands have in common."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


COMMANDS: list[tuple[str, Callable[..., Any]]] = [
    ("backup", backup.backup),
    ("copies", copies.copies),
    ("copy", copy.copy),
    ("check", copies.check),
    ("changes", changes.changes),
    ("forget", retention.forget),
    ("prune", retention.prune),
    ("hold", retention.hold),
    ("release", retention.release),
    ("jobs", jobs.jobs),
    ("report", report.report),
    ("inspect", inspect.inspect),
    ("mount", mounts.mount),
    ("mounts", mounts.mounts),
    ("show", mounts.show),
    ("extend", mounts.extend),
    ("unmount", mounts.unmount),
    ("limits", mounts.limits),
    ("plan", gitops.plan),
    ("apply", gitops.apply),
    ("drift", gitops.drift),
    ("validate", gitops.validate),
    ("schema", gitops.schema),
    ("sizes", sizes.sizes),
    ("doctor", doctor.doctor),
]
for _name, _function in COMMANDS:
    app.command(_name)(_function)
app.add_typer(catalog.app, name="catalog")
app.add_typer(environment.app, name="environment")
app.add_typer(policy.app, name="policy")
app.add_typer(repository.app, name="repository")
app.add_typer(agent.app, name="agent")
app.add_typer(webhook.app, name="webhook")


def main() -> None:
    """Run the command line and exit with its code (Typer itself ends with 2 on wrong usage)."""
    code: int = ExitCode.OK
    try:
        app()
    except LivemountError as error:
        stderr.print(f"[bold red]error:[/] {_escape(error.message)}", highlight=False)
        if error.hint:
            stderr.print(f"[bold]way out:[/] {_escape(error.hint)}", highlight=False)
        code = error.exit_code
    except ValidationError as error:
        first = error.errors()[0]
        where = "_".join(str(part) for part in first["loc"]).upper()
        stderr.print(f"[bold red]error:[/] LIVEMOUNT_{where}: {_escape(first['msg'])}", highlight=False)
        code = ExitCode.USAGE
    sys.exit(int(code))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    main()
