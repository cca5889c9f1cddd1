"""The LM host's REST API (FastAPI): versioned, a bearer token on everything but health, errors as `Problem`."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from livemount import __version__
from livemount.core.errors import DeniedError, ExitCode, LivemountError, UsageError
from livemount.host import metrics
from livemount.host.api import Events, Health, Inspection, InspectionRequest, Problem, PseudoDisk, PseudoDiskRequest
from livemount.host.mounts import Mounts
from livemount.host.watch import Watch

STATUS = {
    ExitCode.USAGE: 422,
    ExitCode.NOT_FOUND: 404,
    ExitCode.CONFLICT: 409,
    ExitCode.UNAVAILABLE: 503,
    ExitCode.NO_SPACE: 507,
    ExitCode.DENIED: 403,
    ExitCode.UNSUPPORTED: 422,
    ExitCode.CORRUPT: 500,
}
"""HTTP status of each kind of error."""


def problem(error: LivemountError, status: int | None = None) -> JSONResponse:
    """The answer that tells a client of an error."""
    body = Problem(message=error.message, hint=error.hint, exit_code=int(error.exit_code))
    return JSONResponse(body.model_dump(), status_code=status or STATUS.get(error.exit_code, 500))


def create_app(mounts: Mounts, token: str) -> FastAPI:
    """The application of one host. `token` is what clients must show."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        mounts.clear()
        watch = Watch(mounts)
        watch.start()
        yield
        watch.stop()

    app = FastAPI(title="Live-mount host", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    def authorized(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise DeniedError("the API token is missing or wrong", hint="send the token of the host's api-token file")

    @app.exception_handler(LivemountError)
    def on_error(_: Request, error: LivemountError) -> JSONResponse:
        return problem(error, 401 if isinstance(error, DeniedError) and "API token" in error.message else None)

    @app.exception_handler(RequestValidationError)
    def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return problem(UsageError(f"{where}: {first['msg']}" if where else str(first["msg"])))

    @app.get("/v1/health", response_model=Health)
    def health() -> Health:
        problems = []
        for part in (mounts.target.mounts, mounts.driver.states):
            try:
                part()
            except LivemountError as error:
                problems.append(str(error))
        return Health(ok=not problems, version=__version__, problems=problems)

    guarded = [Depends(authorized)]
    errors: dict[int | str, dict[str, object]] = {status: {"model": Problem} for status in (401, *set(STATUS.values()))}

    @app.get("/v1/pseudo-disks", dependencies=guarded, responses=errors)
    def list_pseudo_disks() -> list[PseudoDisk]:
        return mounts.list()

    @app.put("/v1/pseudo-disks/{mount}", dependencies=guarded, responses=errors)
    def put_pseudo_disk(mount: str, request: PseudoDiskRequest) -> PseudoDisk:
        return mounts.put(mount, request)

    @app.get("/v1/pseudo-disks/{mount}", dependencies=guarded, responses=errors)
    def get_pseudo_disk(mount: str) -> PseudoDisk:
        return mounts.get(mount)

    @app.delete("/v1/pseudo-disks/{mount}", dependencies=guarded, responses=errors, status_code=204)
    def delete_pseudo_disk(mount: str) -> None:
        mounts.delete(mount)

    @app.post("/v1/inspections", dependencies=guarded, responses=errors)
    def inspect(request: InspectionRequest) -> Inspection:
        return mounts.inspect(request)

    @app.get("/v1/pseudo-disks/{mount}/events", dependencies=guarded, responses=errors)
    def get_events(
        mount: str, after: Annotated[int, Query(ge=0)] = 0, wait: Annotated[float, Query(ge=0, le=30)] = 0
    ) -> Events:
        return Events(events=mounts.events.after(mount, after, wait))

    # With the token like all the rest, as Prometheus can send one (`authorization: credentials_file:`): the names of
    # mounts and machines are for those who may mount, and guests can reach this port.
    @app.get("/metrics", dependencies=guarded, responses=errors)
    def get_metrics() -> Response:
        return Response(
            metrics.render(mounts.driver.states(), mounts.driver.recall_stats()), media_type=metrics.CONTENT_TYPE
        )

    return app
