"""Names, secrets, subprocesses: what every box relies on."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.core.errors import DeniedError, ExitCode, LivemountError, UsageError
from livemount.core.machine import is_name
from livemount.core.run import CommandError, run
from livemount.core.secrets import new_secret, read_secret, secret_file, write_secret
from livemount.core.settings import EnvironmentPaths


@given(st.text(max_size=50))
def test_a_name_is_safe_everywhere(text: str) -> None:
    if is_name(text):
        assert text.isascii()
        assert set(text) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert 1 <= len(text) <= 40
        assert not text.startswith("-")
        assert not text.endswith("-")


@pytest.mark.parametrize("text", ["web01", "a", "0", "a-b", "x" * 40])
def test_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize("text", ["", "-a", "a-", "A", "a_b", "a.b", "../x", "a/b", "x" * 41, "web01\n"])
def test_not_names(text: str) -> None:
    assert not is_name(text)


def test_secret_files(tmp_path: Path) -> None:
    file = secret_file(tmp_path / "folder" / "secret")
    secret = read_secret(file)
    assert len(secret) == 32
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret(secret_file(file)) == secret
    write_secret(file, "other")
    assert read_secret(file) == "other"
    assert [entry.name for entry in file.parent.iterdir()] == ["secret"]


def test_a_secret_that_others_can_read_is_refused(tmp_path: Path) -> None:
    file = secret_file(tmp_path / "secret")
    file.chmod(0o644)
    with pytest.raises(DeniedError, match="read by others"):
        read_secret(file)
    with pytest.raises(DeniedError, match="does not exist"):
        read_secret(tmp_path / "none")


def test_secrets_differ() -> None:
    assert len({new_secret() for _ in range(100)}) == 100


def test_run_keeps_the_error() -> None:
    with pytest.raises(CommandError) as raised:
        run("sh", "-c", "echo out; echo reason >&2; exit 3")
    assert raised.value.returncode == 3
    assert "reason" in str(raised.value)
    assert run("cat", input="text").stdout == "text"
    with pytest.raises(LivemountError, match="not installed"):
        run("no-such-program-anywhere")
    with pytest.raises(LivemountError, match="did not end"):
        run("sleep", "10", timeout=0.1)


@pytest.mark.parametrize("name", ["", "UPPER", "a/b", "waytoolong", "-x"])
def test_bad_environment_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        EnvironmentPaths(name, tmp_path)
    assert raised.value.exit_code is ExitCode.USAGE
