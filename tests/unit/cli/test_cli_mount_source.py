"""`livemount mount` of a copy or of a source: which options go together."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from livemount.cli.main import app
from livemount.core.errors import UsageError


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["web01", "--source", "file:///a"],
        ["web01", "--memory", "2048"],
        ["web01", "--firmware", "uefi"],
        ["web01", "--password-file", "/p"],
        ["--source", "file:///a"],
    ],
)
def test_a_mount_is_of_one_thing(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["mount", *words])
    assert isinstance(result.exception, UsageError), result.output
