"""What the programs are asked for, and what they know of clouds and environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.api import EnvironmentOutputs, EnvironmentRequest
from infra.clouds import cloud
from infra.clouds.local import LocalCloud
from livemount.core.errors import ConflictError, CorruptError, NotFoundError, UnsupportedError, UsageError
from livemount.core.settings import Settings
from livemount.workflow.stack import EnvironmentStack, MountStack, mount_stacks, pulumi_environment


def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, environment="unit", cache=tmp_path / "cache")


def test_a_cloud_is_found_by_its_name() -> None:
    assert isinstance(cloud("local"), LocalCloud)
    with pytest.raises(UnsupportedError, match="no cloud 'moon'"):
        cloud("moon")


def test_an_environment_is_below_its_home(tmp_path: Path) -> None:
    request = EnvironmentRequest.of(settings(tmp_path))
    assert request.paths == settings(tmp_path).paths()
    assert EnvironmentRequest.of(settings(tmp_path), "other").paths.root == tmp_path / "other"


def test_an_environment_has_the_recall_stores_that_the_settings_ask_for(tmp_path: Path) -> None:
    usual = EnvironmentRequest.of(settings(tmp_path))
    assert (usual.recall_quota, usual.keep_recall_stores) == ("50%", False)
    asked = settings(tmp_path).model_copy(update={"recall_quota": "10GiB", "keep_recall_stores": True})
    request = EnvironmentRequest.of(asked)
    assert (request.recall_quota, request.keep_recall_stores) == ("10GiB", True)


def test_the_services_use_the_repository_and_catalog_that_the_settings_name(tmp_path: Path) -> None:
    assert EnvironmentRequest.of(settings(tmp_path)).variables == {}
    told = {"repository": Path("r"), "catalog": "postgresql://u@h/d", "catalog_password_file": tmp_path / "p"}
    assert EnvironmentRequest.of(settings(tmp_path).model_copy(update=told)).variables == {
        "LIVEMOUNT_REPOSITORY": str(Path.cwd() / "r"),
        "LIVEMOUNT_CATALOG": "postgresql://u@h/d",
        "LIVEMOUNT_CATALOG_PASSWORD_FILE": str(tmp_path / "p"),
    }


def test_outputs_of_an_environment_that_is_not_up(tmp_path: Path) -> None:
    paths = settings(tmp_path).paths()
    with pytest.raises(NotFoundError, match="the environment unit is not up"):
        EnvironmentOutputs.load(paths)
    paths.outputs.parent.mkdir()
    paths.outputs.write_text('{"name": 1}')
    with pytest.raises(CorruptError, match=r"environment\.json"):
        EnvironmentOutputs.load(paths)


def test_stacks_of_nothing(tmp_path: Path) -> None:
    paths = settings(tmp_path).paths()
    assert mount_stacks(paths) == []
    stack = MountStack(paths, settings(tmp_path), "web01")
    assert not stack.exists()
    stack.refresh()
    stack.destroy()
    with pytest.raises(NotFoundError):
        stack.outputs()
    with pytest.raises(UsageError):
        MountStack(paths, settings(tmp_path), "../web01")
    assert list(tmp_path.iterdir()) == []


def test_an_environment_with_mounts_stays(tmp_path: Path) -> None:
    paths = settings(tmp_path).paths()
    (paths.pulumi / "mounts" / "web01").mkdir(parents=True)
    with pytest.raises(ConflictError, match="there are mounts: web01"):
        EnvironmentStack(paths, settings(tmp_path)).destroy()


def test_pulumi_is_told_where_everything_is(tmp_path: Path) -> None:
    environment = pulumi_environment(settings(tmp_path).paths(), settings(tmp_path))
    assert environment["PULUMI_BACKEND_URL"] == f"file://{tmp_path}/unit/pulumi/state"
    assert environment["PULUMI_CONFIG_PASSPHRASE_FILE"] == f"{tmp_path}/unit/secrets/pulumi-passphrase"
    assert f"{tmp_path}/cache/pulumi-bin" in environment["PATH"].split(":")[:2]
