"""Secrets live in files of mode 0600 and are handed on by path; they never enter arguments, logs or states."""

from __future__ import annotations

import os
import secrets as _secrets
import string
from pathlib import Path

from livemount.core.errors import DeniedError, UsageError


def new_secret(length: int = 32) -> str:
    """A new random secret of `length` letters and digits (CHAP in iPXE and tgt takes no others safely)."""
    letters = string.ascii_letters + string.digits
    return "".join(_secrets.choice(letters) for _ in range(length))


def write_secret(path: Path, text: str) -> None:
    """Write a secret to `path`, readable by its owner only, replacing what was there at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_secret(path: Path) -> str:
    """Read a secret file. Raises `DeniedError` when it is missing, or readable by others."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DeniedError(f"the secret file {path} does not exist") from error
    if mode & 0o077:
        raise DeniedError(f"the secret file {path} can be read by others", hint=f"chmod 600 {path}")
    return path.read_text().strip()


def read_password(path: Path) -> tuple[str, dict[str, str]]:
    """The password of a repository, the first line of its file, and what the lines `NAME=VALUE` below it tell.

    Those are what opens the place where it is, as `AWS_ACCESS_KEY_ID`. Raises what `read_secret` raises, `UsageError`
    for an empty file or other lines.
    """
    password, *lines = read_secret(path).splitlines() or [""]
    if not password:
        raise UsageError(f"the password file {path} is empty")
    named: dict[str, str] = {}
    for number, line in enumerate(lines, 2):
        name, equals, value = (part.strip() for part in line.partition("="))
        if not line.strip():
            continue
        if not equals or not name.isidentifier() or not value.isprintable() or name in named:
            raise UsageError(f"line {number} of the password file {path} is not NAME=VALUE")
        named[name] = value
    return password, named


def secret_file(path: Path) -> Path:
    """Make sure a secret file is there, making a new secret when it is not, and return its path."""
    if not path.exists():
        write_secret(path, new_secret())
    return path
