"""The provider: answers the engine's questions about any resource of the registry.

Concurrency: the engine asks about several resources at once; each question runs in a thread of its own.
A creation that fails takes away what it has made; where that fails too, the engine is told of a half-made resource,
which a destroy deletes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pulumi.provider.experimental import provider as api
from typing_extensions import override

from livemount.core.errors import ConflictError, LivemountError, UnsupportedError
from livemount.provider.problems import describe
from livemount.provider.properties import from_plain, map_from_plain, map_to_plain
from livemount.provider.resource import Resource, Values

Any_ = Resource[Any]


class HalfMadeError(Exception):
    """A resource could not be made, nor could what was made of it be deleted: it must enter the state."""

    def __init__(self, id: str, properties: Values, inputs: Values, reasons: list[str]) -> None:
        super().__init__("\n".join(reasons))
        self.id = id
        self.properties = map_from_plain(properties)
        self.inputs = map_from_plain(inputs)
        self.reasons = reasons


def create(resource: Any_, values: Values) -> tuple[str, Values]:
    """Make a resource and return its id and properties; a failure leaves nothing, or raises `HalfMadeError`."""
    inputs = resource.parse(values)
    was_there = resource.read(inputs, {}) is not None
    try:
        outputs = resource.create(inputs)
    except Exception as error:
        # A conflict means that the name or address is someone else's: nothing there is ours to delete.
        if not was_there and not isinstance(error, ConflictError):
            try:
                resource.delete(inputs, {})
            except LivemountError as second:
                first = describe(error) if isinstance(error, LivemountError) else str(error)
                left = f"and what was made of it could not be deleted: {second}"
                raise HalfMadeError(resource.id(inputs), values, inputs.wire(), [first, left]) from error
        raise
    return resource.id(inputs), {**inputs.wire(), **outputs}


class LivemountProvider(api.Provider):
    """Answers for all resources that can be found."""

    def __init__(self, find: Callable[[str], Any_]) -> None:
        """`find` gives the resource of a token."""
        self._find = find

    def _resource(self, urn: str) -> Any_:
        # urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME
        return self._find(urn.split("::")[2].rpartition("$")[2])

    @override
    async def configure(self, request: api.ConfigureRequest) -> api.ConfigureResponse:
        """No secret is taken or given (the engine keeps them away); outputs of a preview are not known."""
        return api.ConfigureResponse(
            accept_secrets=False, supports_preview=False, accept_resources=False, accept_outputs=False
        )

    @override
    async def check(self, request: api.CheckRequest) -> api.CheckResponse:
        """Validate inputs and fill in defaults."""
        values, wrong = self._resource(request.urn).check(map_to_plain(request.new_inputs))
        return api.CheckResponse(map_from_plain(values), [api.CheckFailure(name, reason) for name, reason in wrong])

    @override
    async def diff(self, request: api.DiffRequest) -> api.DiffResponse:
        """Compare state and inputs; what cannot change in place is deleted before it is made anew."""
        resource = self._resource(request.urn)
        state, news = map_to_plain(request.old_state), map_to_plain(request.new_inputs)
        for name in request.ignore_changes:
            news[name] = state.get(name)
        difference = await asyncio.to_thread(resource.diff, state, news)
        kinds = api.PropertyDiffKind
        detailed = {name: api.PropertyDiff(kinds.UPDATE_REPLACE, True) for name in difference.replaces}
        detailed |= {name: api.PropertyDiff(kinds.UPDATE, name in news) for name in difference.updates}
        return api.DiffResponse(
            changes=bool(detailed),
            replaces=difference.replaces,
            delete_before_replace=True,
            diffs=[*difference.replaces, *difference.updates],
            detailed_diff=detailed,
        )

    @override
    async def create(self, request: api.CreateRequest) -> api.CreateResponse:
        """Make a resource."""
        resource = self._resource(request.urn)
        id, properties = await asyncio.to_thread(create, resource, map_to_plain(request.properties))
        return api.CreateResponse(id, map_from_plain(properties))

    @override
    async def read(self, request: api.ReadRequest) -> api.ReadResponse:
        """Look at a resource; an answer without an id says that it is gone."""
        resource = self._resource(request.urn)
        values = map_to_plain(request.properties)
        if not values:
            raise UnsupportedError(f"{request.resource_id!r} cannot be imported", hint="let `pulumi up` make it")
        inputs = resource.parse(values)
        outputs = await asyncio.to_thread(resource.read, inputs, resource.outputs(values))
        if outputs is None:
            return api.ReadResponse("")
        return api.ReadResponse(
            request.resource_id, map_from_plain({**inputs.wire(), **outputs}), map_from_plain(inputs.wire())
        )

    @override
    async def update(self, request: api.UpdateRequest) -> api.UpdateResponse:
        """Change a resource in place."""
        resource = self._resource(request.urn)
        inputs = resource.parse(map_to_plain(request.news))
        outputs = await asyncio.to_thread(resource.update, inputs)
        return api.UpdateResponse({key: from_plain(value) for key, value in {**inputs.wire(), **outputs}.items()})

    @override
    async def delete(self, request: api.DeleteRequest) -> None:
        """Take a resource away."""
        resource = self._resource(request.urn)
        values = map_to_plain(request.properties)
        await asyncio.to_thread(resource.delete, resource.parse(values), resource.outputs(values))
