"""The local cloud's resources through the real engine, by a program as a user would write it."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pulumi
import pytest
from pulumi import automation as auto

from infra.resources import Interface, Network
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.local_cloud.cloud import QemuCloud
from livemount.workflow.stack import prepare, pulumi_environment

# Pulumi's SDK leaves event loops of inline programs unclosed (runtime/sync_await.py): the fixture collects them here.
pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class Program:
    """A network and an interface; `address` may be changed between two runs."""

    folder: Path
    namespace: str
    address: str | None = None

    def __call__(self) -> None:
        network = Network(
            "network", cloud_folder=self.folder, name="n", namespace=self.namespace, cidr="10.77.0.0/24", records={}
        )
        interface = Interface(
            "interface",
            cloud_folder=self.folder,
            name="i",
            network="n",
            address=self.address,
            opts=pulumi.ResourceOptions(depends_on=[network]),
        )
        pulumi.export("address", interface.output("privateAddress"))


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """The program of a cloud of its own."""
    folder = tmp_path / "cloud"
    yield Program(folder, f"lm-r{os.getpid() % 100000}-net")
    QemuCloud(folder).destroy_all()
    gc.collect()


@pytest.fixture
def stack(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> auto.Stack:
    """Its stack."""
    settings = Settings(home=tmp_path, environment="env")
    prepare(settings.paths())
    for name, value in pulumi_environment(settings.paths(), settings).items():
        monkeypatch.setenv(name, value)
    return auto.create_stack("test", project_name="resources", program=program)


def counts(summary: Mapping[auto.OpType, int] | None) -> dict[str, int]:
    """The resources by what was done to them, without Pulumi's own."""
    return {str(op): count for op, count in (summary or {}).items() if op != "same"}


def test_refresh_sees_a_deleted_interface_and_up_makes_it_again(stack: auto.Stack, program: Program) -> None:
    cloud = QemuCloud(program.folder)
    assert stack.up().outputs["address"].value == "10.77.0.10"
    assert counts(stack.refresh().summary.resource_changes) == {}
    made = cloud.read_interface("i")
    assert made is not None
    run("ip", "link", "delete", made.device, namespace=program.namespace)

    assert counts(stack.refresh().summary.resource_changes) == {"delete": 1}
    assert counts(stack.up().summary.resource_changes) == {"create": 1}
    assert cloud.read_interface("i") is not None

    run("ip", "link", "delete", made.device, namespace=program.namespace)
    stack.refresh()
    stack.destroy()
    assert cloud.remains() == []


def test_another_address_replaces_the_interface(stack: auto.Stack, program: Program) -> None:
    stack.up()
    program.address = "10.77.0.77"
    update = stack.up()
    assert update.outputs["address"].value == "10.77.0.77"
    assert counts(update.summary.resource_changes) == {"replace": 1}
    stack.destroy()
    assert QemuCloud(program.folder).remains() == []


def test_a_taken_name_is_told_without_a_traceback(stack: auto.Stack, program: Program) -> None:
    cloud = QemuCloud(program.folder)
    program.address = "10.77.0.1"
    with pytest.raises(auto.CommandError) as raised:
        stack.up()
    assert "10.77.0.1" in str(raised.value)
    assert "Traceback" not in str(raised.value)
    # What was made before the failure is in the state, and what failed has left nothing.
    assert cloud.names()["interfaces"] == []
    stack.destroy()
    assert cloud.remains() == []


def test_the_exported_state_holds_no_secret(stack: auto.Stack, tmp_path: Path) -> None:
    stack.up()
    passphrase = (tmp_path / "env" / "secrets" / "pulumi-passphrase").read_text()
    exported = json.dumps(stack.export_stack().deployment)
    assert "livemount:local:Interface" in exported
    assert passphrase not in exported
    stack.destroy()
