"""`livemount sizes`: which type of machine a cloud would give to a copy."""

from __future__ import annotations

from typing import Annotated

import typer

from infra.aws.sizes import size_for
from livemount.cli.copies import Output, mountable_copy
from livemount.cli.output import OutputFormat, print_json, print_table
from livemount.core.errors import UnsupportedError
from livemount.core.settings import Settings


def sizes(
    copy: Annotated[str, typer.Argument(help="The copy: NAME, NAME@latest or NAME@ID.")],
    cloud: Annotated[str, typer.Option(help="The cloud.")] = "aws",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Show which type of machine a cloud would mount a copy on: the smallest that has its processors and memory.

    Example: livemount sizes --cloud aws web01@latest
    """
    if cloud != "aws":
        raise UnsupportedError(f"the cloud {cloud!r} has no types of machines", hint="known is aws")
    found = mountable_copy(Settings(), copy)
    machine, size = found.description, size_for(found.description)
    name = f"{found.name}@{found.id[:8]}"
    if output is OutputFormat.JSON:
        print_json(
            copy=name,
            wanted={"cpus": machine.cpus, "memory_mib": machine.memory_mib, "firmware": machine.firmware.value},
            size={"name": size.name, "cpus": size.cpus, "memory_mib": size.memory_mib},
        )
        return
    print_table(
        ["COPY", "CPUS", "MEMORY", "FIRMWARE", "TYPE", "ITS CPUS", "ITS MEMORY"],
        [
            (
                name, machine.cpus, f"{machine.memory_mib} MiB", machine.firmware,
                size.name, size.cpus, f"{size.memory_mib} MiB",
            )
        ],
        empty="",
    )  # fmt: skip
