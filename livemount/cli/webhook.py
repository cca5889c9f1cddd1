"""`livemount webhook`: trying out the webhook that is told of mounts."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import typer

from livemount.cli.output import stdout
from livemount.core.errors import NotFoundError
from livemount.core.settings import Settings
from livemount.workflow.notices import HINT, Notice, NoticeKind, Webhook
from livemount.workflow.states import MountState

app = typer.Typer(no_args_is_help=True, help="The webhook that is told when mounts are about to end, and have ended.")


@app.callback()
def webhook() -> None:
    """A callback makes `test` a command of its own, though it is the only one."""


@app.command()
def test() -> None:
    """Send a notice of the kind `test`, as the manager sends those of mounts.

    Example: livemount webhook test
    """
    file = Settings().paths().webhook
    now = datetime.now(UTC)
    notice = Notice(
        id=f"test.{secrets.token_hex(8)}",
        kind=NoticeKind.TEST,
        mount="test",
        copy="test",
        owner="",
        state=MountState.RUNNING,
        reason="livemount webhook test",
        expires=now,
        time=now,
    )
    if not Webhook(file).send(notice):
        raise NotFoundError(f"no webhook is told: there is no {file}, or it wants no notices of tests", hint=HINT)
    stdout.print("the webhook was told", highlight=False)
