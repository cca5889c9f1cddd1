"""How the demonstration speaks: steps with their times, commands as typed, facts checked as they are shown."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

console = Console(highlight=False, soft_wrap=True)


class DemoError(Exception):
    """Something the demonstration shows is not so."""


class Walk:
    """The walk through the demonstration, with the environment its commands run in."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self._environment = {**os.environ, **environment}
        self._folder = folder
        self._began = time.monotonic()
        self._number = 0

    def step(self, title: str) -> None:
        """Begin a step."""
        self._number += 1
        elapsed = time.monotonic() - self._began
        console.print(f"\n[bold cyan]{self._number}. {title}[/]  [dim]({elapsed:.0f} s since the start)[/]")

    def run(self, *words: str, show: bool = True) -> None:
        """Run a command as a user would type it, its output shown. Raises `DemoError` when it fails."""
        if show:
            console.print(f"[bold]$ {shlex.join(words)}[/]")
        done = subprocess.run(words, env=self._environment, cwd=self._folder, check=False, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise DemoError(f"`{shlex.join(words)}` exited with {done.returncode}")

    def ask(self, *words: str) -> dict[str, Any]:
        """Run a command with `--output json` and return what it says."""
        done = subprocess.run(
            [*words, "--output", "json"],
            env=self._environment,
            cwd=self._folder,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode != 0:
            raise DemoError(f"`{shlex.join(words)}` exited with {done.returncode}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def fact(self, what: str, value: object, ok: bool = True) -> None:
        """Show a fact; one that is not `ok` ends the demonstration."""
        console.print(f"   [{'green' if ok else 'red'}]{'✓' if ok else '✗'}[/] {what}: [bold]{value}[/]")
        if not ok:
            raise DemoError(f"{what}: {value}")

    def nothing_left(self, found: Mapping[str, list[str]]) -> None:
        """Show that nothing of each kind is left."""
        for kind, names in found.items():
            self.fact(kind, names or "nothing left", not names)

    def end(self) -> None:
        """Say how long it took."""
        console.print(f"\n[bold green]The demonstration is over: {time.monotonic() - self._began:.0f} s.[/]")


def fail(error: Exception) -> None:
    """Say what went wrong and end with 1."""
    console.print(f"\n[bold red]The demonstration failed:[/] {error}")
    sys.exit(1)
