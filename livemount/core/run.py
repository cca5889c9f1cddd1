"""The one way to run another program: logged as a command to paste, its error in the exception."""

from __future__ import annotations

import logging
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from livemount.core.errors import LivemountError

log = logging.getLogger(__name__)


class CommandError(LivemountError):
    """A program exited with an error; `returncode`, `stdout` and `stderr` are kept."""

    def __init__(self, args: Sequence[str], returncode: int, stdout: str, stderr: str) -> None:
        last = (stderr or stdout).strip()[-2000:]
        super().__init__(f"`{shlex.join(args)}` exited with {returncode}: {last}")
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr


def in_namespace(namespace: str) -> list[str]:
    """The words that start a program in a network namespace.

    Not `ip netns exec`: that makes a mount namespace too, in which later FUSE mounts are not seen.
    """
    return ["nsenter", f"--net=/run/netns/{namespace}", "--"]


def run(
    *args: str | Path,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    check: bool = True,
    timeout: float | None = 300,
    namespace: str | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its text output.

    `namespace` is the name of a network namespace to run in. `timeout` is in seconds. Secrets go by
    `input` or by files, never by `args`: arguments are logged and visible to other users.
    `pass_fds` are descriptors the program inherits.
    Raises `CommandError` when the program fails and `check` is set.
    """
    words = [str(a) for a in args]
    if namespace is not None:
        words = [*in_namespace(namespace), *words]
    log.debug("run: %s", shlex.join(words))
    try:
        done = subprocess.run(
            words,
            input=input,
            env=env,
            cwd=cwd,
            check=False,
            timeout=timeout,
            capture_output=True,
            text=True,
            pass_fds=pass_fds,
        )
    except FileNotFoundError as error:
        raise LivemountError(
            f"the program {words[0]!r} is not installed", hint="run `make setup` or `livemount doctor`"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LivemountError(f"`{shlex.join(words)}` did not end within {timeout} s") from error
    if check and done.returncode != 0:
        raise CommandError(words, done.returncode, done.stdout, done.stderr)
    return done
