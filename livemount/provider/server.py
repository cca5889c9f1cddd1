"""Serves the provider to an engine, and ends with it.

The engine tells its plug-ins when to end, but a killed engine does not: so this process watches its parent, and a
provider never outlives its engine. What was under way then is found again from the state's pending operations.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf import any_pb2
from pulumi.provider.experimental import provider as api
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.provider.experimental.server import ProviderServicer
from pulumi.runtime._grpc_settings import _GRPC_CHANNEL_OPTIONS
from pulumi.runtime.proto import provider_pb2, provider_pb2_grpc, status_pb2

from livemount.core.errors import LivemountError
from livemount.provider.problems import describe
from livemount.provider.provider import HalfMadeError

log = logging.getLogger(__name__)


class Servicer(ProviderServicer):
    """Pulumi's servicer with our errors told as one clean message instead of a traceback."""

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `LivemountProvider.check`."""
        return await _guarded(super().Check, request, context)

    async def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `LivemountProvider.diff`."""
        return await _guarded(super().Diff, request, context)

    async def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `LivemountProvider.create`."""
        return await _guarded(super().Create, request, context)

    async def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `LivemountProvider.read`."""
        return await _guarded(super().Read, request, context)

    async def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `LivemountProvider.update`."""
        return await _guarded(super().Update, request, context)

    async def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        """See `LivemountProvider.delete`."""
        return await _guarded(super().Delete, request, context)


async def _guarded(method: Callable[[Any, Any], Awaitable[Any]], request: Any, context: Any) -> Any:
    try:
        return await method(request, context)
    except LivemountError as error:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, describe(error))
    except HalfMadeError as error:
        status = _half_made(error)
        await context.abort(
            grpc.StatusCode.UNKNOWN, str(error), (("grpc-status-details-bin", status.SerializeToString()),)
        )
    except Exception as error:
        log.exception("the provider failed unexpectedly")
        await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error} (this is a bug)")


def _half_made(error: HalfMadeError) -> status_pb2.Status:
    """The status by which a provider tells of a resource that exists but could not be finished."""
    detail = provider_pb2.ErrorResourceInitFailed(
        id=error.id,
        properties=PropertyValue.marshal_map(error.properties),
        inputs=PropertyValue.marshal_map(error.inputs),
        reasons=error.reasons,
    )
    packed = any_pb2.Any()
    packed.Pack(detail)
    return status_pb2.Status(code=grpc.StatusCode.UNKNOWN.value[0], message=str(error), details=[packed])


def _end_with(parent: int) -> None:
    """End this process when its parent has ended."""
    try:
        descriptor = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        select.select([descriptor], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="engine-watch", daemon=True).start()


async def _serve(provider: api.Provider, version: str, engine: str) -> None:
    server = grpc.aio.server(options=_GRPC_CHANNEL_OPTIONS)
    servicer = Servicer(sys.argv[1:], version, provider, engine_address=engine)
    provider_pb2_grpc.add_ResourceProviderServicer_to_server(servicer, server)
    port = server.add_insecure_port(address="127.0.0.1:0")
    await server.start()
    # The engine reads the port from the first line of our output.
    print(port, flush=True)
    await server.wait_for_termination()


def serve(provider: api.Provider, version: str, engine: str) -> None:
    """Serve until the engine ends us, or has ended."""
    _end_with(os.getppid())
    try:
        asyncio.run(_serve(provider, version, engine))
    except KeyboardInterrupt:
        return
