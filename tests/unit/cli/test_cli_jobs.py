"""`livemount jobs`, once and live."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from livemount.catalog.api import open_catalog
from livemount.catalog.catalog import JobKind, Outcome
from livemount.cli.jobs import Watcher, table
from livemount.core.settings import Settings


def test_a_watch_tells_what_changed(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    words = [sys.executable, "-m", "livemount.cli.main", "jobs", "--watch", "--interval", "0.1"]
    environment = {**os.environ, "LIVEMOUNT_HOME": str(tmp_path)}
    with open_catalog(settings) as catalog:
        catalog.begin(JobKind.BACKUP, "/r", id="one", machine="web01")
        lines, looks = (
            subprocess.Popen([*words, *more], env=environment, stdout=subprocess.PIPE, text=True)
            for more in ([], ["--output", "json"])
        )
        assert lines.stdout is not None
        assert looks.stdout is not None
        try:
            assert "; backup; web01; running; " in lines.stdout.readline()
            assert [job["id"] for job in json.loads(looks.stdout.readline())["jobs"]] == ["one"]
            catalog.end("one", Outcome.DONE, "web01@12345678", bytes=1 << 20)
            assert re.search(r"; done; (\dm )?\d+s; 1.0 MiB; web01@12345678$", lines.stdout.readline())
            changed = next(look["jobs"] for look in map(json.loads, looks.stdout) if look["jobs"])
            assert [(job["outcome"], job["bytes"]) for job in changed] == [("done", 1 << 20)]
            for process in (lines, looks):
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == 0
        finally:
            for process in (lines, looks):
                process.kill()
                process.communicate()


def test_a_terminal_sees_what_runs_and_a_catalog_that_is_away_ends_no_watch(tmp_path: Path) -> None:
    with open_catalog(Settings(home=tmp_path)) as catalog:
        catalog.begin(JobKind.PRUNE, "/r", policy="nightly")
    console = Console(width=1000)  # the path of the test is in what is shown: it must not be wrapped

    def shown(settings: Settings) -> str:
        with console.capture() as capture:
            console.print(table(Watcher(settings, None, None, 9).look()))
        return capture.get()

    assert re.search(r"prune +nightly +running +\d+s(.|\n)*1 running; Ctrl-C ends", shown(Settings(home=tmp_path)))
    away = Settings(home=tmp_path, catalog=f"postgresql://postgres@/postgres?host={tmp_path}")
    assert re.search(r"cannot be used(.|\n)*0 running", shown(away))
