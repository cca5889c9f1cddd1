"""`livemount environment`: the network, LM host and machine image that mounts need (the same as `pulumi up`)."""

from __future__ import annotations

import typer

from livemount.cli.copies import Output
from livemount.cli.output import OutputFormat, print_json, stderr, stdout
from livemount.core.settings import Settings
from livemount.manager.environment import Environment

app = typer.Typer(no_args_is_help=True, help="The environment mounts live in: network, live-mount host, machine image.")


@app.command()
def up() -> None:
    """Make the environment, or bring it to what is asked for. Runs `pulumi up` on the environment's stack."""
    Environment(Settings()).up(lambda line: stderr.print(line, highlight=False, markup=False))
    stdout.print("the environment is up; `livemount mount NAME` uses it")


@app.command()
def down() -> None:
    """Take the environment away. Refused while there are mounts."""
    Environment(Settings()).down(lambda line: stderr.print(line, highlight=False, markup=False))
    stdout.print("the environment is gone; copies are untouched")


@app.command()
def show(output: Output = OutputFormat.TABLE) -> None:
    """Show what the environment consists of and where."""
    outputs = Environment(Settings()).outputs()
    if output is OutputFormat.JSON:
        print_json(environment=outputs.model_dump(mode="json"))
        return
    for key, value in outputs.model_dump(mode="json").items():
        stdout.print(f"{key}: {value}", highlight=False)
