"""Long-running processes that outlive their caller, found again by what they are: no pid is ever recorded or believed.

A process is known by one word of its command line that names a path below the cloud's folder. It is looked for in
/proc, held by a pidfd, and looked at again through it, so a reused pid is never taken for ours or killed.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from livemount.core.errors import LivemountError

Test = Callable[[int], bool]
"""Whether the process of this pid is meant."""

_EXEC_MILLISECONDS = 500
FILE_LIMIT = 256 << 20
"""Bytes that any one file of such a process may reach: a guest decides how much is logged."""


def start(words: Sequence[str], log: Path, *, namespace: str | None, keep: Sequence[int] = ()) -> None:
    """Start a program in a session of its own, its output appended to `log`.

    `keep` are descriptors it inherits. On return it has its command line, and so can be found.
    """
    command = ["setsid", "--fork", "prlimit", f"--fsize={FILE_LIMIT}", "--core=0", "--"]
    if namespace is not None:
        command += ["nsenter", f"--net=/run/netns/{namespace}", "--"]
    with log.open("ab") as output:
        # restore_signals: SIGXFSZ stays ignored, so that a file at its limit stops growing and the process lives on.
        subprocess.run(
            [*command, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=True,
            pass_fds=keep,
            restore_signals=False,
            timeout=30,
        )


def command_line(pid: int) -> list[str]:
    """The words of a process's command line; none for one that has ended, waited for or not, and for the kernel's."""
    for _ in range(_EXEC_MILLISECONDS):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            # In the middle of an exec there is a program already, but not yet its command line.
            if words or not Path(f"/proc/{pid}/exe").readlink():
                return words
        except OSError:
            return []
        time.sleep(0.001)
    return []


def describe(pid: int) -> str:
    """The pid and the program, for messages."""
    return f"{pid} ({Path((command_line(pid) or ['ended'])[0]).name})"


def is_same(pid: int) -> Test:
    """Matches the process that has this pid now, and no later one."""
    began = _start_time(pid)
    return lambda other: other == pid and began is not None and _start_time(other) == began


def _start_time(pid: int) -> str | None:
    """When a process began, in clock ticks since boot: with the pid, its identity. `None` for one that has ended."""
    try:
        # The program's name, in parentheses, may hold anything; field 3 is the state, field 22 the start time.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def with_word(word: str) -> Test:
    """Matches processes that have this word on their command line, from their very start."""
    return lambda pid: word in command_line(pid)


def network(pid: int) -> int | None:
    """The inode of the network namespace a process is in; `None` for one that has ended."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return None


def in_network(inode: int) -> Test:
    """Matches processes in a network namespace."""
    return lambda pid: network(pid) == inode


def find(is_ours: Test) -> list[int]:
    """The pids of the processes that match."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in pids if pid != os.getpid() and is_ours(pid)]


@contextmanager
def _held(pid: int, is_ours: Test) -> Iterator[int | None]:
    """A pidfd of the process, or `None` when it has ended or is another one by now."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield descriptor if is_ours(pid) else None
    finally:
        os.close(descriptor)


def wait(is_ours: Test, seconds: float) -> bool:
    """Wait until no process matches; whether that came true in time."""
    deadline = time.monotonic() + seconds
    while pids := find(is_ours):
        with _held(pids[0], is_ours) as descriptor:
            if descriptor is None:
                continue
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return False
    return True


def end(is_ours: Test, *, grace: float = 2) -> None:
    """End every process that matches, by SIGTERM, then by SIGKILL after `grace` seconds; returns when they are gone."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5), (signal.SIGKILL, 5)):
        for pid in find(is_ours):
            with _held(pid, is_ours) as descriptor:
                if descriptor is not None:
                    signal.pidfd_send_signal(descriptor, number)
        if wait(is_ours, seconds):
            return
    raise LivemountError(f"processes {find(is_ours)} do not end, not even by SIGKILL")
