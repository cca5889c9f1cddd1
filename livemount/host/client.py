"""Client of a live-mount host's REST API, over its unix socket or over HTTPS.

Connecting is tried a few times (a host's service that is being restarted); a request that was sent is not sent again.
Not for several threads at once.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from livemount.core.errors import LivemountError, UnavailableError, UsageError, error_of
from livemount.core.secrets import read_secret
from livemount.host.api import Events, Health, Inspection, InspectionRequest, Problem, PseudoDisk, PseudoDiskRequest

CONNECT_RETRIES = 3
"""Further attempts to connect; httpx waits 0, 0.5 and 1 s before them."""
TIMEOUT = 60.0
"""Seconds an answer may take."""
PREPARE_TIMEOUT = 900.0
"""Seconds the making or deleting of a pseudo-disk may take: guest preparation recalls kernels and initrds."""
_ANSWER_LIMIT = 64 << 20
"""Bytes of an answer that are read at most."""

_Model = TypeVar("_Model", bound=BaseModel)


class HostClient:
    """Talks to one host.

    `endpoint` is `unix:///path/of/api.sock` or `https://host:port`; the token is read from its file; `ca_file` holds
    the CA of the host's certificate (`None`: the system's). Raises what the host raised, by its exit code, and
    `UnavailableError` when it does not answer.
    """

    def __init__(self, endpoint: str, token_file: Path | None = None, ca_file: Path | None = None) -> None:
        url = urlsplit(endpoint)
        headers = {} if token_file is None else {"Authorization": f"Bearer {read_secret(token_file)}"}
        if url.scheme == "unix" and url.path:
            transport = httpx.HTTPTransport(uds=url.path, retries=CONNECT_RETRIES)
            base = "http://host"
        elif url.scheme == "https" and url.hostname:
            context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
            transport = httpx.HTTPTransport(verify=context, retries=CONNECT_RETRIES)
            base = endpoint
        else:
            raise UsageError(
                f"{endpoint!r} is no endpoint of a live-mount host",
                hint="it begins with unix:/// or https:// (the token must not cross a network in the clear)",
            )
        self._endpoint = endpoint
        self._http = httpx.Client(
            base_url=base, transport=transport, headers=headers, timeout=httpx.Timeout(TIMEOUT, connect=5.0)
        )

    def __enter__(self) -> HostClient:
        """Keep the connection for the calls of a block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._http.close()

    def health(self) -> Health:
        """Whether the host's parts are there. Needs no token."""
        return self._get("/v1/health", Health)

    def put_pseudo_disk(self, mount: str, request: PseudoDiskRequest) -> PseudoDisk:
        """Make a mount's pseudo-disk, target and boot script; the same request again changes nothing."""
        body = request.model_dump(mode="json")
        return self._parse(self._send("PUT", _path(mount), PREPARE_TIMEOUT, json=body), PseudoDisk)

    def get_pseudo_disk(self, mount: str) -> PseudoDisk:
        """A mount as it is now. Raises `NotFoundError`."""
        return self._get(_path(mount), PseudoDisk)

    def list_pseudo_disks(self, timeout: float = TIMEOUT) -> list[PseudoDisk]:
        """All mounts on the host, which has `timeout` seconds to answer."""
        response = self._send("GET", "/v1/pseudo-disks", timeout)
        try:
            return TypeAdapter(list[PseudoDisk]).validate_json(response.content)
        except ValidationError as error:
            raise self._strange(error) from error

    def delete_pseudo_disk(self, mount: str) -> None:
        """Take a mount away; nothing happens when it is not there."""
        self._send("DELETE", _path(mount), PREPARE_TIMEOUT)

    def inspect(self, request: InspectionRequest) -> Inspection:
        """Whether a guest would boot, and what a mount would change in it; nothing of it stays."""
        body = request.model_dump(mode="json")
        return self._parse(self._send("POST", "/v1/inspections", PREPARE_TIMEOUT, json=body), Inspection)

    def events(self, mount: str, after: int = 0, wait: float = 0) -> Events:
        """What happened to a mount after event number `after`; waits up to `wait` seconds (30 at most) for one."""
        response = self._send("GET", f"{_path(mount)}/events", TIMEOUT, params={"after": after, "wait": wait})
        return self._parse(response, Events)

    def _get(self, path: str, kind: type[_Model]) -> _Model:
        return self._parse(self._send("GET", path, TIMEOUT), kind)

    def _send(
        self,
        method: str,
        path: str,
        timeout: float,
        *,
        json: dict[str, object] | None = None,
        params: dict[str, float] | None = None,
    ) -> httpx.Response:
        request = self._http.build_request(
            method, path, json=json, params=params, timeout=httpx.Timeout(timeout, connect=5.0)
        )
        try:
            response = self._http.send(request, stream=True)
            try:
                body = b"".join(_limited(response))
            finally:
                response.close()
        except httpx.TimeoutException as error:
            raise UnavailableError(f"the live-mount host at {self._endpoint} did not answer in time") from error
        except httpx.TransportError as error:
            raise UnavailableError(
                f"the live-mount host at {self._endpoint} cannot be reached: {error}",
                hint="is the environment up? `livemount environment show`",
            ) from error
        answer = httpx.Response(response.status_code, content=body)
        if answer.is_success:
            return answer
        raise self._problem(answer)

    def _problem(self, response: httpx.Response) -> LivemountError:
        try:
            problem = Problem.model_validate_json(response.content)
        except ValidationError:
            return UnavailableError(f"the live-mount host at {self._endpoint} answered HTTP {response.status_code}")
        return error_of(problem.exit_code, problem.message, problem.hint)

    def _parse(self, response: httpx.Response, kind: type[_Model]) -> _Model:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError as error:
            raise self._strange(error) from error

    def _strange(self, error: ValidationError) -> LivemountError:
        first = error.errors()[0]
        return LivemountError(
            f"the live-mount host at {self._endpoint} gave an answer that is not understood: {first['msg']}",
            hint="host and client must be of the same version",
        )


def _path(mount: str) -> str:
    return f"/v1/pseudo-disks/{quote(mount, safe='')}"


def _limited(response: httpx.Response) -> list[bytes]:
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_bytes():
        size += len(chunk)
        if size > _ANSWER_LIMIT:
            raise LivemountError("the live-mount host's answer is too long")
        chunks.append(chunk)
    return chunks
