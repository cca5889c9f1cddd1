"""A policy from its YAML file; what is wrong is told with the file, the line and the field."""

from __future__ import annotations

from pathlib import Path

from livemount.core.errors import UsageError
from livemount.core.yaml_file import LONGEST, parse_model
from livemount.media.sources.file import read_error
from livemount.policies.policy import Policy

HINT = "docs/policies.md shows a full example; `livemount policy schema` prints the schema"


def read_policy(file: Path) -> Policy:
    """The policy in a file. Raises `UsageError`, `NotFoundError`, `DeniedError`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LONGEST + 1)
    except OSError as error:
        raise read_error(file, error) from error
    if len(data) > LONGEST:
        raise UsageError(f"{file} has more than {LONGEST} bytes: it is no policy")
    return parse_policy(data, str(file))


def parse_policy(data: bytes, place: str) -> Policy:
    """The policy in these bytes; `place` is what messages call them. Raises `UsageError`."""
    return parse_model(data, place, Policy, HINT)
