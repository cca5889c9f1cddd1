"""`livemount changes`: what differs between two snapshots of a disk, as their cloud tells."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from livemount.cli.output import print_line
from livemount.media.registry import changes_between


def changes(
    before: Annotated[str, typer.Argument(help="The URI of the earlier snapshot.")],
    after: Annotated[str, typer.Argument(help="The URI of the later one.")],
    password_file: Annotated[Path | None, typer.Option(help="The file with the secret of both.")] = None,
) -> None:
    """Print what differs between two snapshots of a disk: JSON, [[offset, length], ...] in bytes, in order.

    It is for `livemount backup --changes`. Nothing of the disk is read. EBS snapshots and Azure page blobs tell it.

    Example: livemount changes ebs://eu-central-1/snap-0123456789abcdef0 ebs://eu-central-1/snap-0fedcba9876543210
    """
    last = ""
    for offset, length in changes_between(before, after, password_file):
        print_line(f"{last}," if last else "[")
        last = f"[{offset}, {length}]"
    print_line(f"{last}\n]" if last else "[]")
