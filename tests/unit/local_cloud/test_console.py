"""The console, on a real shell on a real terminal, with a kernel that writes in between."""

from __future__ import annotations

import os
import pty
import random
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from livemount.core.errors import UnavailableError, UsageError
from livemount.local_cloud.console import Console, ConsoleError


@dataclass
class Serial:
    """What QEMU and a guest are to a console: a socket and a log, and a shell on a terminal behind them."""

    folder: Path
    noise: float = 0.0
    """How often, of the shell's bytes, a kernel message comes in between."""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def console(self) -> Console:
        return Console(self.folder / "console.sock", self.folder / "console.log")

    def say(self, text: str) -> None:
        """Write to the log as the guest."""
        with (self.folder / "console.log").open("ab") as log:
            log.write(text.encode())

    def serve(self, server: socket.socket) -> None:
        """Between socket, terminal and log, until told to stop."""
        chance = random.Random(1)
        master, slave = pty.openpty()
        with (
            subprocess.Popen(
                ["bash", "--norc", "-i"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
            ) as shell,
            selectors.DefaultSelector() as selector,
        ):
            os.close(slave)
            selector.register(server, selectors.EVENT_READ)
            selector.register(master, selectors.EVENT_READ)
            while not self.stop.is_set():
                for key, _ in selector.select(0.05):
                    if key.fileobj is server:
                        client = server.accept()[0]
                        selector.register(client, selectors.EVENT_READ, client)
                    elif key.fd == master:
                        shown = os.read(master, 4096)
                        for at in range(len(shown)):
                            self.say(shown[at : at + 1].decode("latin1"))
                            if chance.random() < self.noise:
                                self.say("[   12.345678] device eth0: something happened\r\n")
                    elif data := key.data.recv(4096):
                        os.write(master, data)
                    else:
                        selector.unregister(key.data)
                        key.data.close()
            for key in list(selector.get_map().values()):
                if key.data is not None:
                    key.data.close()
            shell.kill()
            os.close(master)


@pytest.fixture
def serial(tmp_path: Path) -> Iterator[Serial]:
    """A console with a shell on it."""
    found = Serial(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console.sock"))
        server.listen()
        thread = threading.Thread(target=found.serve, args=(server,))
        thread.start()
        try:
            yield found
        finally:
            found.stop.set()
            thread.join()


def test_command_returns_its_output(serial: Serial) -> None:
    assert serial.console.command("echo one; echo two >&2", 30) == "one\ntwo\n"
    assert serial.console.command("printf 'no end of line'", 30) == "no end of line"
    assert serial.console.command("""echo "it's $((6 * 7))!" \\\n  and more""", 30) == "it's 42! and more\n"
    assert serial.console.command("true", 30) == ""


def test_command_that_fails(serial: Serial) -> None:
    with pytest.raises(ConsoleError, match="exited with 3: oops") as caught:
        serial.console.command("echo oops >&2; exit 3", 30)
    assert (caught.value.status, caught.value.output) == (3, "oops\n")
    assert serial.console.command("echo still here", 30) == "still here\n"


def test_command_while_the_kernel_writes(serial: Serial) -> None:
    serial.noise = 0.02
    assert serial.console.command("seq 1 300", 60) == "".join(f"{n}\n" for n in range(1, 301))
    assert "something happened" in (serial.folder / "console.log").read_text()


def test_command_in_time(serial: Serial) -> None:
    with pytest.raises(UnavailableError, match="did not end in time"):
        serial.console.command("sleep 60", 2)
    with pytest.raises(UsageError, match="too long"):
        serial.console.command("x" * 5000, 2)
    with pytest.raises(UnavailableError, match="does not answer"):
        Console(serial.folder / "none.sock", serial.folder / "console.log").command("true", 2)


def test_wait_for_loses_nothing_and_matches_once(serial: Serial) -> None:
    console = serial.console
    serial.say("\x1b[1mLinux ver\x1b[0msion 6.1\r\nweb01 login: \r\nafter ä")
    assert console.wait_for(r"version \S+", 5) == "version 6.1"
    assert console.wait_for(r"(\w+) login:", 5) == "web01 login:"
    console.command("echo later", 30)
    assert console.wait_for("after ä", 5) == "after ä"
    with pytest.raises(UnavailableError, match="did not show 'login:' within"):
        console.wait_for("login:", 0.3)


def test_escape_sequences_may_be_cut(tmp_path: Path) -> None:
    guest = Serial(tmp_path)
    console = guest.console
    guest.say("mar\x1b[0;1;3")
    with pytest.raises(UnavailableError):
        console.wait_for("mark", 0.3)
    guest.say("1mked\x1b[5;1Hnext line")
    assert console.wait_for(r"marked\nnext line", 5) == "marked\nnext line"
