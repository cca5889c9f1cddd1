"""The plug-in `pulumi-resource-aws` of tests: answers the engine for the resources in `resources.py`."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError
from pulumi.provider.experimental import provider as api
from typing_extensions import override

from livemount.core.errors import UnsupportedError
from livemount.provider.properties import is_known, map_from_plain, map_to_plain
from livemount.provider.server import serve
from tests.support.aws_stand_in.resources import KINDS, Clients, Kind
from tests.support.aws_stand_in.schema import arguments_of, problems

ROOT = Path(__file__).parents[3]
GIVEN = "standInInputs"
"""The property of a state that holds the inputs: the SDK's provider is not told of them when it compares."""


class AwsStandIn(api.Provider):
    """Stands in for the provider of AWS."""

    def __init__(self) -> None:
        self._clients = Clients()

    def _kind(self, urn: str) -> Kind:
        token = urn.split("::")[2].rpartition("$")[2]
        if token not in KINDS:
            raise UnsupportedError(f"the stand-in for AWS has no {token}")
        return KINDS[token]

    @override
    async def check_config(self, request: api.CheckRequest) -> api.CheckResponse:
        """Takes any configuration."""
        return api.CheckResponse(request.new_inputs)

    @override
    async def diff_config(self, request: api.DiffRequest) -> api.DiffResponse:
        """Another region is another provider."""
        changed = map_to_plain(request.old_state).get("region") != map_to_plain(request.new_inputs).get("region")
        return api.DiffResponse(changes=changed, replaces=["region"] if changed else [])

    @override
    async def configure(self, request: api.ConfigureRequest) -> api.ConfigureResponse:
        """Remember the region."""
        self._clients.region = str(map_to_plain(request.args)["region"])
        return api.ConfigureResponse(
            accept_secrets=False, supports_preview=False, accept_resources=False, accept_outputs=False
        )

    @override
    async def check(self, request: api.CheckRequest) -> api.CheckResponse:
        """By the SDK's schema. A name that AWS wants and nobody gave is made up, and kept."""
        kind = self._kind(request.urn)
        token = request.urn.split("::")[2].rpartition("$")[2]
        values, olds = map_to_plain(request.new_inputs), map_to_plain(request.old_inputs)
        wrong = [api.CheckFailure(name, reason) for name, reason in problems(arguments_of(token), values)]
        if kind.named and kind.named not in values:
            prefix = values.get(f"{kind.named}Prefix", "") or f"{request.urn.split('::')[-1]}-"
            values[kind.named] = olds.get(kind.named) or f"{prefix}{os.urandom(4).hex()}"
        return api.CheckResponse(map_from_plain(values), wrong)

    @override
    async def diff(self, request: api.DiffRequest) -> api.DiffResponse:
        """Tags and what a kind says change in place; anything else replaces."""
        kind = self._kind(request.urn)
        olds, news = json.loads(map_to_plain(request.old_state)[GIVEN]), map_to_plain(request.new_inputs)
        changed = sorted(name for name in olds.keys() | news.keys() if olds.get(name) != news.get(name))
        replaces = [name for name in changed if name not in kind.updatable]
        return api.DiffResponse(changes=bool(changed), replaces=replaces, diffs=changed)

    @override
    async def create(self, request: api.CreateRequest) -> api.CreateResponse:
        """Make it in moto."""
        kind, values = self._kind(request.urn), map_to_plain(request.properties)
        assert is_known(values)
        id, outputs = await _told(kind.create, self._clients, values)
        return api.CreateResponse(id, map_from_plain({**values, **outputs, **_given(values)}))

    @override
    async def read(self, request: api.ReadRequest) -> api.ReadResponse:
        """Whether moto has it."""
        kind, values = self._kind(request.urn), map_to_plain(request.properties)
        if not await _told(kind.exists, self._clients, request.resource_id, values):
            return api.ReadResponse("")
        return api.ReadResponse(request.resource_id, request.properties, request.inputs)

    @override
    async def update(self, request: api.UpdateRequest) -> api.UpdateResponse:
        """Change it in moto."""
        kind, values = self._kind(request.urn), map_to_plain(request.news)
        await _told(kind.update, self._clients, request.resource_id, values)
        return api.UpdateResponse(map_from_plain({**map_to_plain(request.olds), **values, **_given(values)}))

    @override
    async def delete(self, request: api.DeleteRequest) -> None:
        """Take it away."""
        kind, values = self._kind(request.urn), map_to_plain(request.properties)
        await _told(kind.delete, self._clients, request.resource_id, values)


def _given(values: dict[str, Any]) -> dict[str, str]:
    return {GIVEN: json.dumps(values, sort_keys=True)}


async def _told(call: Any, *words: Any) -> Any:
    """What `call` gives, in a thread; what AWS refuses is one message, as from the provider."""
    try:
        return await asyncio.to_thread(call, *words)
    except ClientError as error:
        raise UnsupportedError(str(error)) from error


def install(folder: Path) -> Path:
    """Write the plug-in's program into a folder, which is for the front of PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "pulumi-resource-aws"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.support.aws_stand_in.provider import main\nmain()\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


def main() -> None:
    """Serve the engine that started us."""
    serve(AwsStandIn(), version("pulumi-aws"), sys.argv[1])
