"""`livemount:index:EnvironmentFile`: what an environment exports, as the JSON file that mounts begin from.

A resource rather than a side effect of some command: the file is there exactly while the environment is up, whether it
was brought up by `pulumi up` or by `livemount environment up`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typing_extensions import override

from livemount.provider.resource import Inputs, Resource, Values


class EnvironmentFileInputs(Inputs):
    """Where the file is and what is in it; no secret."""

    path: Path
    values: dict[str, Any]

    def text(self) -> str:
        """The file's content."""
        return json.dumps(self.values, indent=2, sort_keys=True) + "\n"


class EnvironmentFile(Resource[EnvironmentFileInputs]):
    """A JSON file."""

    token = "livemount:index:EnvironmentFile"  # noqa: S105
    inputs = EnvironmentFileInputs
    updatable = frozenset({"values"})

    @override
    def id(self, inputs: EnvironmentFileInputs) -> str:
        """The file's path."""
        return str(inputs.path)

    @override
    def create(self, inputs: EnvironmentFileInputs) -> Values:
        """Write the file, at once."""
        inputs.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = inputs.path.with_name(inputs.path.name + ".new")
        temporary.write_text(inputs.text())
        temporary.replace(inputs.path)
        return {}

    @override
    def read(self, inputs: EnvironmentFileInputs, outputs: Values) -> Values | None:
        """A file that is missing, or was changed by someone, is not the one we wrote."""
        try:
            return {} if inputs.path.read_text() == inputs.text() else None
        except FileNotFoundError:
            return None

    @override
    def delete(self, inputs: EnvironmentFileInputs, outputs: Values) -> None:
        """Delete the file."""
        inputs.path.unlink(missing_ok=True)
