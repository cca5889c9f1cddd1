"""Errors a user sees: one message, a hint (the way out) and a stable exit code. A traceback means a bug."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Stable exit codes of the command line (documented in docs/cli.md)."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    CONFLICT = 4
    UNAVAILABLE = 5
    NO_SPACE = 6
    DENIED = 7
    UNSUPPORTED = 8
    CORRUPT = 9
    LATE = 10
    INTERRUPTED = 130


class LivemountError(Exception):
    """An error the user can act on. `message` names the thing and the reason, `hint` the way out."""

    exit_code = ExitCode.FAILURE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class UsageError(LivemountError):
    """The input is malformed; nothing was changed."""

    exit_code = ExitCode.USAGE


class NotFoundError(LivemountError):
    """The named thing (copy, mount, file) does not exist."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(LivemountError):
    """The name, address or state is taken by something else."""

    exit_code = ExitCode.CONFLICT


class UnavailableError(LivemountError):
    """A service that is needed (LM host, target, source) does not answer."""

    exit_code = ExitCode.UNAVAILABLE


class NoSpaceError(LivemountError):
    """A file system or quota has no room."""

    exit_code = ExitCode.NO_SPACE


class DeniedError(LivemountError):
    """A secret, token or key is wrong or missing."""

    exit_code = ExitCode.DENIED


class UnsupportedError(LivemountError):
    """The thing is understood but cannot work, e.g. a guest without an initrd."""

    exit_code = ExitCode.UNSUPPORTED


class CorruptError(LivemountError):
    """Stored data fails its checksum or cannot be parsed."""

    exit_code = ExitCode.CORRUPT


class LateError(LivemountError):
    """Something that should have been done by now was not."""

    exit_code = ExitCode.LATE


def error_of(exit_code: int, message: str, hint: str | None = None) -> LivemountError:
    """The error of this exit code, as it was raised in another process or on another host."""
    known = {int(kind.exit_code): kind for kind in LivemountError.__subclasses__() if kind.__module__ == __name__}
    return known.get(exit_code, LivemountError)(message, hint=hint)
