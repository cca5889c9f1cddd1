"""`livemount mounts --watch` on a terminal, in a pipe and for programs, while a host's service comes and goes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.api import EnvironmentOutputs
from livemount.core.machine import Copy, Firmware, MachineDescription
from livemount.core.secrets import secret_file
from livemount.core.settings import Settings
from livemount.host.api import PseudoDiskRequest
from livemount.host.records import Record, Records
from livemount.manager.client import Manager
from livemount.workflow.states import MountOrder, MountState
from tests.integration.driver.conftest import MIB, Host, make_source, wait_for

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]


class World:
    """One running mount `m`: the real driver, the host's and the manager's services; no stack and no guest."""

    def __init__(self, settings: Settings) -> None:
        self.paths = settings.paths()
        self.driver = Host(self.paths.host)
        self.environment = {
            **os.environ, "LIVEMOUNT_HOME": str(settings.home), "LIVEMOUNT_ENVIRONMENT": settings.environment,
            "TERM": "xterm", "COLUMNS": "",
        }  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *words: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a program of ours."""
        process = subprocess.Popen([sys.executable, *words], env=self.environment, cwd=ROOT, **options)
        self.processes.append(process)
        return process

    def start_api(self) -> subprocess.Popen[bytes]:
        """Start the host's API and wait for its socket."""
        root, token = str(self.paths.host), str(self.paths.api_token)
        words = ["--root", root, "--address", "127.0.0.1", "--token-file", token, "--guest-tools", root]
        with (self.paths.host / "api.log").open("ab") as log:
            process = self.start("-m", "livemount.host", *words, stdout=log, stderr=log)
        wait_for(self.paths.host.joinpath("run", "api.sock").exists)
        return process

    def stop_api(self, process: subprocess.Popen[bytes]) -> None:
        """Kill it."""
        process.kill()
        process.wait()
        self.paths.host.joinpath("run", "api.sock").unlink()

    def recall(self, at: int) -> None:
        """Have the disk of `m` recall the chunk of 64 KiB that is at `at`."""
        file = os.open(self.driver.client.state("m").path, os.O_RDONLY)
        try:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            assert len(os.pread(file, 4096, at)) == 4096
        finally:
            os.close(file)

    def order(self) -> MountOrder:
        """The order of `m`."""
        now = datetime.now(UTC)
        copy = Copy(
            id="ab" * 32, name="web01", time=now, size=8 * MIB, stored=4 * MIB,
            description=MachineDescription(), source=f"file://{self.paths.root}/image",
        )  # fmt: skip
        return MountOrder(mount="m", copy=copy, expires=now + timedelta(hours=1, minutes=5))


@contextmanager
def a_world(home: Path) -> Iterator[World]:
    world = World(Settings(home=home, environment="w"))
    try:
        paths = world.paths
        paths.host.mkdir(parents=True)
        secret_file(paths.api_token)
        make_source(paths.root / "image", 8 * MIB)
        log = paths.root / "manager.log"
        with log.open("ab") as output:
            world.start("-m", "tests.support.manager", stdout=output, stderr=output)
        world.driver.start()
        world.driver.client.attach(world.driver.spec("m", paths.root / "image"))
        request = PseudoDiskRequest(source=f"file://{paths.root}/image", address="10.77.0.10", firmware=Firmware.BIOS)
        records = Records(world.driver.paths.mounts, world.driver.paths.recall)
        records.write("m", Record(request=request, created=datetime.now(UTC)))
        outputs = EnvironmentOutputs(
            name="w", cloud="local", endpoint=f"unix://{world.driver.paths.api_socket}", token_file=paths.api_token,
            host_address="127.0.0.1", boot_url="http://boot", network="guests", image=home, image_digest="0",
            cloud_folder=home,
        )  # fmt: skip
        paths.outputs.write_text(outputs.model_dump_json())
        wait_for(lambda: "is ready" in log.read_text(), 60)
        with closing(Manager(paths)) as manager:
            manager.request(world.order())
            for record in manager.watch("m"):
                if record.state is MountState.RUNNING:
                    break
        yield world
    finally:
        for process in world.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stdin):
                if pipe is not None:
                    pipe.close()
        world.driver.clean()


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The services of an environment; below a short path, for their sockets."""
    with tempfile.TemporaryDirectory(prefix="lm") as home, a_world(Path(home)) as world:
        yield world


class Terminal:
    """What a terminal got to see."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        self.seen = ""

    def read(self, *, until: Callable[[str], object], timeout: float = 60) -> str:
        """Read until a condition is true of all that has come since the last call."""
        deadline = time.monotonic() + timeout
        new = ""
        while not until(new):
            left = deadline - time.monotonic()
            assert left > 0, f"it never came: {self.seen}"
            if select.select([self.master], [], [], 0.1)[0]:
                new += os.read(self.master, 65536).decode()
                self.seen = new
        return new

    def close(self) -> None:
        """The terminal is gone."""
        for file in (self.master, self.slave):
            with contextlib.suppress(OSError):
                os.close(file)


def test_a_terminal_shows_a_table_that_lives_until_ctrl_c(world: World) -> None:
    api = world.start_api()
    with closing(Terminal()) as terminal:
        command = ["setsid", "--ctty", sys.executable, "-m", "livemount.cli.main", "mounts", "--watch"]
        process = subprocess.Popen(
            [*command, "--interval", "0.2"],
            env=world.environment, cwd=ROOT, stdin=terminal.slave, stdout=terminal.slave, stderr=terminal.slave,
        )  # fmt: skip
        world.processes.append(process)
        first = terminal.read(until=lambda text: "Ctrl-C ends" in text and "/s" in text)
        assert re.search(r"running 1h 0\dm", first)
        assert "ZERO, PRIVATE" in first
        world.recall(5 * MIB)
        assert "0.8%" in terminal.read(until=lambda text: "64.0 KiB" in text)
        world.stop_api(api)
        terminal.read(until=lambda text: "cannot be reached" in text)
        assert process.poll() is None
        api = world.start_api()
        world.recall(MIB)
        assert "1.6%" in terminal.read(until=lambda text: "128.0 KiB" in text)
        os.write(terminal.master, b"\x03")
        terminal.read(until=lambda _: process.poll() is not None)
    assert process.returncode == 0
    world.stop_api(api)


def test_a_pipe_gets_lines_and_programs_get_json(world: World) -> None:
    lines = world.start("-m", "livemount.cli.main", "mounts", "--watch", "--interval", "0.2", stdout=subprocess.PIPE)
    words = ["mounts", "--watch", "--interval", "0.2", "--output", "json"]
    looks = world.start("-m", "livemount.cli.main", *words, stdout=subprocess.PIPE)
    assert lines.stdout is not None
    assert looks.stdout is not None

    # The host is away at first, and nobody minds.
    away = json.loads(looks.stdout.readline())
    assert "cannot be reached" in away["problem"]
    assert [(each["mount"], each["state"], each["stats"]) for each in away["mounts"]] == [("m", "running", None)]
    found = [lines.stdout.readline().decode() for _ in range(2)]
    assert re.fullmatch(r"\d\d:\d\d:\d\d m running; left 1h 0\dm\n", found[0])
    assert "cannot be reached" in found[1]

    api = world.start_api()
    world.recall(3 * MIB)
    text = next(line.decode() for line in lines.stdout if b" reads " in line)
    assert re.search(r"m running; left 1h 0\dm; hits zero \d+ private 0 recall \d+ source \d+; recalled ", text)
    look = next(look for look in map(json.loads, looks.stdout) if look["mounts"][0]["rates"])
    (mount,) = look["mounts"]
    assert (look["version"], look["problem"]) == (1, None)
    assert 0 < mount["left_seconds"] < 3900
    assert mount["rates"].keys() >= {"reads_per_second", "writes_per_second", "read_latency", "write_latency"}
    once = world.start("-m", "livemount.cli.main", "mounts", "--output", "json", stdout=subprocess.PIPE)
    assert once.stdout is not None
    (known,) = json.loads(once.stdout.read())["mounts"]
    assert known["disk"]["stats"] == mount["stats"]
    for process in (lines, looks):
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    world.stop_api(api)


def test_without_a_manager_there_is_nothing_to_watch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "livemount.cli.main", "mounts", "--watch"],
        env={**os.environ, "LIVEMOUNT_HOME": str(tmp_path)}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5
    assert "does not run" in done.stderr
