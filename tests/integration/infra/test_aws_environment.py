"""An environment in AWS by the real engine and SDK, on moto behind the stand-in provider: no AWS was asked."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import livemount
from infra.api import EnvironmentOutputs
from livemount.core.machine import Firmware
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.media import open_source
from livemount.workflow.stack import prepare, pulumi_environment
from tests.support.aws import aws_client, aws_environment, inventory
from tests.support.aws_stand_in.provider import install
from tests.support.moto_stand_in import REGION, MotoStandIn

PROJECT = Path(livemount.__file__).parents[1]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@dataclass
class Environment:
    """A stack of the project's own program, by the command line of Pulumi."""

    settings: Settings
    moto: MotoStandIn
    variables: dict[str, str]
    folder: Path
    """With the project's Pulumi.yaml, so that the stack's settings lie there."""
    image: str

    def pulumi(self, *words: str, check: bool = True) -> str:
        """What `pulumi` prints."""
        done = run("pulumi", *words, "--color", "never", env=self.variables, cwd=self.folder, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def configure(self, **settings: Any) -> None:
        """Write the stack's settings."""
        known = {"cloud": "aws", "awsRegion": REGION, "awsHostImage": self.image, **settings}
        file = self.folder / "Pulumi.aws.yaml"
        salt = yaml.safe_load(file.read_text()) if file.exists() else {}
        salt["config"] = {f"livemount:{key}": item for key, item in known.items()}
        file.write_text(yaml.safe_dump(salt))

    def up(self) -> str:
        """`pulumi up`."""
        return self.pulumi("up", "--yes", "--skip-preview", "--continue-on-error")

    def state(self) -> list[dict[str, Any]]:
        """The resources of the stack."""
        exported = json.loads(run("pulumi", "stack", "export", env=self.variables, cwd=self.folder).stdout)
        return list(exported["deployment"].get("resources", []))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """One that is not up yet."""
    folder = tmp_path_factory.mktemp("aws")
    settings = Settings(home=folder, environment="aws")
    prepare(settings.paths())
    moto = MotoStandIn()
    stand_in = install(folder / "bin")
    variables = {**os.environ, **pulumi_environment(settings.paths(), settings), **aws_environment(moto)}
    variables["PATH"] = os.pathsep.join([str(stand_in), variables["PATH"]])
    image = aws_client(moto, "ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    made = Environment(settings, moto, variables, folder, image)
    project = yaml.safe_load((PROJECT / "Pulumi.yaml").read_text())
    (folder / "Pulumi.yaml").write_text(yaml.safe_dump({**project, "main": str(PROJECT / project["main"])}))
    try:
        made.pulumi("stack", "init", "aws")
        yield made
    finally:
        moto.stop()


def test_up_nothing_to_change_and_down_to_nothing(environment: Environment) -> None:
    before = inventory(environment.moto)
    environment.configure(awsClientCidrs=["10.9.0.0/16"], awsTags=["owner=backup"], awsSourceBuckets=["copies"])
    environment.up()
    print(json.dumps(inventory(environment.moto), indent=1))
    outputs = EnvironmentOutputs.load(environment.settings.paths())
    print(outputs)
    print(json.dumps(environment.state(), indent=1))
    said = environment.pulumi("preview", "--expect-no-changes")
    environment.pulumi("destroy", "--yes", "--skip-preview")
    assert inventory(environment.moto) == before
