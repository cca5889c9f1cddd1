"""What can be a host, and when hosts should be configured again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from livemount.configure import api
from livemount.configure.api import HostSpec, check, problems, remove, restart, roles_digest
from livemount.core.errors import UnavailableError, UsageError


def spec(home: Path, environment: str = "e") -> HostSpec:
    return HostSpec(environment=environment, home=home, address="127.0.0.1", token_file=home / "t", guest_tools=home)


@pytest.mark.parametrize("path", ["relative", "/with space", "/per%cent", '/quo"te', "/line\nbreak", "/ümlaut"])
def test_paths_that_some_configuration_file_would_take_otherwise_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be a path of a live-mount host"):
        spec(Path(path))


def test_a_host_that_is_not_there_is_not_well_and_nothing_to_remove(tmp_path: Path) -> None:
    absent = spec(tmp_path / "home")
    assert not check(absent)
    assert problems(absent)[0] == "the service driver does not run"
    remove(absent)
    assert not absent.home.exists()
    with pytest.raises(UsageError, match="no service 'sshd'"):
        restart(absent, "sshd")
    with pytest.raises(UnavailableError, match="e is not ready: the service driver does not run"):
        api.wait_ready(absent, timeout=0)


def test_the_digest_follows_every_file_of_the_roles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = roles_digest()
    shutil.copytree(api.ROLES, tmp_path / "ansible")
    monkeypatch.setattr(api, "ROLES", tmp_path / "ansible")
    assert roles_digest() == original
    variables = api.ROLES / "roles" / "manager" / "vars" / "main.yml"
    variables.write_text(variables.read_text() + "\n")
    changed = roles_digest()
    variables.rename(variables.with_name("moved.yml"))
    assert len({original, changed, roles_digest()}) == 3


@pytest.mark.parametrize("quota", ["", "half", "101%", "-1", "5GB", "1.5TiB", "50%\n"])
def test_a_quota_that_is_none_is_refused(tmp_path: Path, quota: str) -> None:
    with pytest.raises(ValidationError, match="recall_quota"):
        HostSpec.model_validate({**spec(tmp_path).model_dump(), "recall_quota": quota})
