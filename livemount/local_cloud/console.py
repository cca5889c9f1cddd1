"""A virtual machine's serial console: waiting for what it shows, and running commands in the root shell on it.

The text is read from the log, which QEMU writes whether or not anybody is connected: nothing is lost between two
calls. The socket is written to for one command at a time; QEMU serves one client at once.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import re
import secrets
import socket
import time
from pathlib import Path

from livemount.core.errors import LivemountError, UnavailableError, UsageError

_POLL_SECONDS = 0.1
_REPEAT_SECONDS = 4.0
"""After how long a question is asked again, at first: what is typed while a login starts is thrown away."""
_LINE_LIMIT = 3500
"""A terminal's line holds 4095 characters."""
_TEXT_LIMIT = 16 << 20
"""Characters that are searched at once: a guest decides how much it shows."""
_POSITION = re.compile(r"\x1b\[\d*;?\d*H")
_ESCAPE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[()].|[^\[()])")
_ESCAPE_LIMIT = 32
# `[   12.345678] text`: the kernel may write it in the middle of a program's line.
_KERNEL = re.compile(r"\[ *\d+\.\d{6}\][^\n]*\n")


class ConsoleError(LivemountError):
    """A command on the console exited with an error; `status` and `output` are kept."""

    def __init__(self, text: str, status: int, output: str) -> None:
        super().__init__(f"`{text}` on the console exited with {status}: {output.strip()[-2000:]}")
        self.status = status
        self.output = output


class _Reader:
    """Reads a log that grows, from `position` (bytes) on; keeps what was not matched yet."""

    def __init__(self, log: Path, position: int = 0) -> None:
        self._log = log
        self._position = position
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._cut = ""
        self.text = ""

    def read(self) -> None:
        """Append what is new to `text`, without escape sequences; one that moves the cursor counts as a new line."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._position)
            new = file.read(_TEXT_LIMIT)
        self._position += len(new)
        raw = self._cut + self._decoder.decode(new).replace("\r", "")
        last = raw.rfind("\x1b")
        incomplete = last >= 0 and len(raw) - last < _ESCAPE_LIMIT and not _ESCAPE.match(raw, last)
        raw, self._cut = (raw[:last], raw[last:]) if incomplete else (raw, "")
        self.text += _ESCAPE.sub("", _POSITION.sub("\n", raw))
        if len(self.text) > _TEXT_LIMIT:
            raise LivemountError(f"the console {self._log} shows too much to search")

    def last_lines(self) -> str:
        """The end of what was shown, for messages."""
        return self.text[-1000:].strip() or "nothing"


class Console:
    """The console of one machine: its `console_socket` and `console_log`."""

    def __init__(self, socket: Path, log: Path) -> None:
        self._socket = socket
        self._log = log
        self._reader = _Reader(log)

    def wait_for(self, pattern: str, timeout: float) -> str:
        """Wait until the regular expression matches what was shown after the last match, and return that match.

        Escape sequences are taken out before. Raises `UnavailableError`, with what was shown last, after `timeout`
        seconds.
        """
        deadline = time.monotonic() + timeout
        reader = self._reader
        while True:
            reader.read()
            if match := re.search(pattern, reader.text):
                reader.text = reader.text[match.end() :]
                return match.group()
            if time.monotonic() > deadline:
                shown = reader.last_lines()
                raise UnavailableError(f"the console did not show {pattern!r} within {timeout:g} s; last: {shown}")
            time.sleep(_POLL_SECONDS)

    def command(self, text: str, timeout: float) -> str:
        """Run a command in the root shell that is logged in on the console and return its output (both streams).

        Works while the kernel writes to the same console. The guest needs base64 and sha256sum. Raises `ConsoleError`
        when the command exits with an error, `UnavailableError` when no shell answers or it does not end in `timeout`
        seconds. `wait_for` sees what is shown meanwhile.
        """
        session = _Session(self._socket, self._log, time.monotonic() + timeout)
        try:
            return session.command(text)
        finally:
            session.close()


class _Session:
    """One command in the shell on a console."""

    def __init__(self, path: Path, log: Path, deadline: float) -> None:
        self._deadline = deadline
        self._mark = "lm" + secrets.token_hex(6)
        self._reader = _Reader(log, log.stat().st_size if log.exists() else 0)
        self._connection = socket.socket(socket.AF_UNIX)
        try:
            self._connection.settimeout(5)
            self._connection.connect(str(path))
            self._connection.settimeout(None)
        except OSError as error:
            self._connection.close()
            raise UnavailableError(f"the console {path} does not answer: {error}") from error

    def close(self) -> None:
        """Let the next client have the console."""
        self._connection.close()

    def command(self, text: str) -> str:
        """See `Console.command`."""
        # Output and status go to files in the guest and are then shown encoded, with a checksum: what the kernel or
        # systemd write in between is told from it, and if it is not, they are shown again.
        file = f"/tmp/.{self._mark}"  # noqa: S108 (in the guest; the name cannot be guessed)
        script = base64.b64encode(text.encode()).decode()
        run = f'(umask 077; sh -c "$(echo {script} | base64 -d)" </dev/null >{file} 2>&1; echo $? >{file}.status)'
        if len(run) > _LINE_LIMIT:
            raise UsageError(f"a console command of {len(text)} characters is too long")
        self._ask("", "shell")
        self._send(run)
        self._ask("", "ran")
        show = f"cat {file}.status {file} | base64; {self._echo('sum')}; cat {file}.status {file} | sha256sum; "
        while (content := _decode(self._ask(f"{self._echo('begin')}; {show}", "shown"), self._mark)) is None:
            pass
        self._send(f"rm -f {file} {file}.status")
        status, _, output = content.partition("\n")
        if status != "0":
            raise ConsoleError(text, int(status), output)
        return output

    def _echo(self, word: str) -> str:
        # The empty quotes keep the echo of what is typed from looking like the answer.
        return f'echo; echo {self._mark}""{word}.'

    def _ask(self, line: str, word: str) -> str:
        """Type a line until it is answered: until `word` is shown; returns what was shown before it."""
        patience = _REPEAT_SECONDS
        answer = f"{self._mark}{word}."
        while True:
            self._send(line + self._echo(word))
            again = min(time.monotonic() + patience, self._deadline)
            while time.monotonic() < again:
                self._drain()
                self._reader.read()
                before, found, after = _KERNEL.sub("", self._reader.text).partition(answer)
                if found:
                    self._reader.text = after
                    return before
                time.sleep(_POLL_SECONDS)
            if time.monotonic() >= self._deadline:
                what = "no shell answers on the console" if word == "shell" else "the command did not end in time"
                raise UnavailableError(f"{what}; it last showed: {self._reader.last_lines()}")
            patience *= 2

    def _send(self, line: str) -> None:
        rest = line.encode() + b"\n"
        while rest:
            self._drain()
            try:
                rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                if time.monotonic() > self._deadline:
                    raise UnavailableError("the guest does not read its console") from None
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                raise UnavailableError(f"the console has gone: {error}") from error

    def _drain(self) -> None:
        """Take what QEMU sends (it is read from the log): a full socket would hold up the guest."""
        try:
            while self._connection.recv(1 << 16, socket.MSG_DONTWAIT):
                pass
        except BlockingIOError:
            return
        except OSError as error:
            raise UnavailableError(f"the console has gone: {error}") from error
        raise UnavailableError(f"the machine has ended; it last showed: {self._reader.last_lines()}")


def _decode(shown: str, mark: str) -> str | None:
    """The text between the last markers, or `None` when it was disturbed."""
    encoded, found, checksum = shown.rpartition(f"{mark}begin.")[2].partition(f"{mark}sum.")
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except binascii.Error:
        return None
    whole = bool(found) and checksum.split()[:1] == [hashlib.sha256(content).hexdigest()]
    return content.decode(errors="replace") if whole else None
