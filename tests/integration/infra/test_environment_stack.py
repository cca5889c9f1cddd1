"""The whole environment by its stack: network, host by the Ansible roles, machine image by Packer."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import livemount
from livemount.configure.api import HostSpec, service_pids
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.host.client import HostClient
from livemount.local_cloud.cloud import QemuCloud
from livemount.workflow.stack import EnvironmentStack
from livemount.workflow.stack_events import StackEvent, StackEventKind

PROJECT = Path(livemount.__file__).parents[1]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An environment of its own; its folder's path is short, as sockets lie below it."""
    home = Path(f"/tmp/lm-e{os.getpid()}")
    settings = Settings(home=home, environment=f"e{os.getpid() % 100000}")
    yield settings
    # What a failed test has left goes the same way.
    EnvironmentStack(settings.paths(), settings).destroy()
    QemuCloud(settings.paths().cloud).destroy_all()
    shutil.rmtree(home, ignore_errors=True)


def test_up_again_up_by_hand_and_down(settings: Settings) -> None:
    paths = settings.paths()
    stack = EnvironmentStack(paths, settings)
    seen: list[StackEvent] = []
    outputs = stack.up(on_event=seen.append)
    made = [event.resource for event in seen if event.kind is StackEventKind.DONE]
    assert made[-1] == "outputs", "mounts are told last"
    with HostClient(outputs.endpoint, outputs.token_file) as host:
        assert host.health().ok
        assert host.list_pseudo_disks() == []
    assert outputs.image.is_file()

    seen.clear()
    stack.refresh(seen.append)
    assert stack.up(on_event=seen.append) == outputs
    assert [str(event) for event in seen] == []

    by_hand = run(
        "bash", "-c",
        '. setup/env && pulumi stack select "$LIVEMOUNT_ENVIRONMENT"'
        " && pulumi preview --expect-no-changes --color never",
        env={
            **os.environ, "LIVEMOUNT_HOME": str(settings.home), "LIVEMOUNT_ENVIRONMENT": paths.name,
            "PYTHON": sys.executable, "PYTHONPATH": str(PROJECT),
        },
        cwd=PROJECT,
        check=False,
    )  # fmt: skip
    (PROJECT / f"Pulumi.{paths.name}.yaml").unlink(missing_ok=True)
    assert by_hand.returncode == 0, by_hand.stdout + by_hand.stderr

    stack.destroy()
    assert not paths.outputs.exists()
    assert not paths.pulumi.exists()
    assert list(paths.secrets.iterdir()) == []
    assert QemuCloud(paths.cloud).remains() == []
    spec = HostSpec(
        environment=paths.name, home=settings.home, address="10.77.0.2",
        token_file=paths.api_token, guest_tools=settings.cache / "guest-tools",
    )  # fmt: skip
    assert service_pids(spec) == {}
