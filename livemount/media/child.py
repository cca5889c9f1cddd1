"""Helper programs of a source: they end with this process, also when it is killed.

The kernel ends them (PR_SET_PDEATHSIG) when the *thread* that started them ends. So one thread starts all of them,
and lives as long as the process: recalls come from threads that do not.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import IO

from livemount.core.errors import UnavailableError, UnsupportedError

MEMORY_LIMIT = 4 << 30
"""Bytes of address space: an image that was made to use up memory ends its helper only."""

# $0 is the process that started it. When that ended before the kernel was told to watch it, nothing is started.
# A listening socket is handed over as standard input, and on as systemd does it.
_SCRIPT = '[ "$PPID" = "$0" ] || exit 1; exec "$@"'
_LISTENING = '[ "$PPID" = "$0" ] || exit 1; exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$; '
_LISTENING += 'export LISTEN_FDS LISTEN_PID; exec "$@"'


@cache
def _keeper() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="keeper")


def confined(*words: str, network: bool = False, processor_seconds: int | None = None) -> list[str]:
    """The words that run a program within limits, and where we are root, without any network if it may have none."""
    limits = ["prlimit", f"--as={MEMORY_LIMIT}", "--core=0"]
    if processor_seconds is not None:
        limits.append(f"--cpu={processor_seconds}")
    alone = ["unshare", "--net", "--"] if os.geteuid() == 0 and not network else []
    return [*limits, "--", *alone, *words]


class Child:
    """A running helper program."""

    def __init__(
        self,
        words: Sequence[str],
        *,
        listen: socket.socket | None = None,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        last_signal: str = "KILL",
    ) -> None:
        """Start it; `last_signal` is what it gets when this process has ended.

        Raises `UnsupportedError` when a program for that is not installed.
        """
        self._said: IO[bytes] = os.fdopen(os.memfd_create("said", os.MFD_CLOEXEC), "w+b")
        script = _SCRIPT if listen is None else _LISTENING
        whole = ["setpriv", "--pdeathsig", last_signal, "--", "sh", "-c", script, str(os.getpid()), *words]
        base = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                whole,
                stdin=subprocess.DEVNULL if listen is None else listen.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                env=base | dict(environment or {}),
                pass_fds=pass_fds,
            )

        try:
            self._process = _keeper().submit(start).result()
        except FileNotFoundError as error:
            self._said.close()
            raise UnsupportedError("setpriv is not installed", hint="apt-get install util-linux") from error
        except (OSError, RuntimeError) as error:
            self._said.close()
            raise UnavailableError(f"cannot start {words[0]}: {error}") from error

    @property
    def pid(self) -> int:
        """Its process id, until it has been closed."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; none while it runs."""
        return self._process.poll()

    def kill(self) -> None:
        """End it at once; it is still to be closed."""
        self._process.kill()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def said(self) -> str:
        """The end of what it said on standard error."""
        end = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, end - 4096))
        return self._said.read().decode(errors="replace").strip()

    def open_files(self) -> set[tuple[int, int]]:
        """Device and inode of the regular files, devices and folders on disks that it has open."""
        found = set()
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            try:
                name, status = str(link.readlink()), link.stat()
            except FileNotFoundError:
                continue
            if name.startswith("/") and name != os.devnull and not name.startswith("/memfd:"):
                found.add((status.st_dev, status.st_ino))
        return found

    def close(self, grace: float = 0) -> None:
        """End it: at once, or `grace` seconds after it was asked to."""
        if grace:
            self._process.terminate()
            self.wait(grace)
        self._process.kill()
        self._process.wait()
        self._said.close()


def listening_socket() -> tuple[socket.socket, int]:
    """A listening Unix socket without a name in any folder, and a descriptor: /proc/self/fd/N is its address."""
    with tempfile.TemporaryDirectory(prefix="livemount-") as folder:
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(f"{folder}/s")
            listener.listen(16)
            return listener, os.open(f"{folder}/s", os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            listener.close()
            raise UnavailableError(f"cannot make a socket in {folder}: {error}") from error
