"""`https://HOST/PATH?QUERY` (or `http`): a raw disk image that a web server or an object store gives by ranges.

What is read is pinned to the object's ETag or time of change, as it was when the source was opened: another version of
it is an error, never mixed in. The password file has one or two lines: `USER:PASSWORD` or `Authorization: SCHEME ...`,
and `?QUERY` for what is secret in a signed URL. It goes to that one server, by https only, and is not shown.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.secrets import read_secret
from livemount.media.source import RangeSource, Source

if TYPE_CHECKING:
    import httpx

SCHEMES = ("http", "https")
CHUNK = 256 << 10
"""A request costs its way to and fro: as long as some 256 KiB in many networks."""
CONNECTIONS = 32
CONNECT_PATIENCE = 5.0
PATIENCE = 15.0
"""Seconds without a byte from a server that was asked."""
LONGEST_ANSWER = 60.0
"""Seconds for one answer, however steadily it trickles."""
REDIRECTS = 5
FRESH = 2
"""Seconds; the times of HTTP are whole ones."""


@dataclass(frozen=True)
class Credentials:
    """What a password file holds."""

    authorization: str = ""
    query: str = ""

    @classmethod
    def read(cls, file: Path) -> Credentials:
        """Raises `DeniedError` for a file that holds none."""
        authorization = query = ""
        for line in read_secret(file).splitlines():
            text = line.strip()
            if not text.isprintable():
                break
            if text.startswith("?") and not query:
                query = text[1:]
            elif ":" in text and not authorization:
                name, _, value = text.partition(":")
                if name.lower() == "authorization":
                    authorization = value.strip()
                else:
                    authorization = "Basic " + base64.b64encode(text.encode()).decode()
            else:
                break
        else:
            if authorization or query:
                return cls(authorization, query)
        raise DeniedError(
            f"{file} holds no credentials", hint="USER:PASSWORD, or `Authorization: SCHEME ...`; and ?QUERY"
        )


@dataclass(frozen=True)
class Version:
    """Which version of an object: its size, and what the server calls it."""

    size: int
    etag: str
    modified: str
    fresh: bool = field(default=False, compare=False)
    """It was made so lately that the next one may have the same names."""

    @property
    def strong(self) -> bool:
        """Whether the ETag promises equal bytes."""
        return self.etag.startswith('"')

    def conditions(self) -> dict[str, str]:
        """Headers by which a server gives this version or none."""
        return {"If-Match": self.etag} if self.strong else {"If-Unmodified-Since": self.modified}


class HttpObject(RangeSource):
    """A `Source` over an object."""

    headers: Mapping[str, str] = {}
    """Of each request."""

    def __init__(self, url: httpx.URL, credentials: Credentials, client: httpx.Client) -> None:
        self._url = url
        self._credentials = credentials
        self._client = client
        self._name = f"{url.scheme}://{url.netloc.decode()}{url.path}"
        self.version = self._first_look()
        """The version that is read."""

    def _first_look(self) -> Version:
        _, version = self._get(0, 1, None)
        if version.size == 0 or version.size % 512:
            raise UnsupportedError(
                f"{self._name} is no raw disk image: it has {version.size} bytes, not a multiple of 512"
            )
        self._must_be_told_apart(version)
        return version

    def _must_be_told_apart(self, version: Version) -> None:
        """From those that come after it."""
        if version.fresh:
            # Servers make ETags of the time in whole seconds: another change in this one would not be seen.
            raise UnavailableError(f"{self._name} was changed only now", hint="try again in a few seconds")
        if not (version.strong or version.modified):
            raise UnsupportedError(
                f"the server of {self._name} does not tell one version of it from another",
                hint="it must send an ETag that is not weak, or Last-Modified",
            )

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self.version.size

    @property
    def identity(self) -> str:
        """Made of the URL and the version."""
        facts = ("http", str(self._url), self.version.size, self.version.etag, self.version.modified)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def chunk_size(self) -> int:
        """256 KiB."""
        return CHUNK

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        return self._get(offset, length, self.version)[0] if length else b""

    def close(self) -> None:
        """Let go of the connections."""
        self._open = False
        self._client.close()

    def _get(self, offset: int, length: int, pinned: Version | None) -> tuple[bytes, Version]:
        """A range, and the version of which it is: the pinned one, if any."""
        headers = {**self.headers, "Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        if pinned is not None:
            headers |= pinned.conditions()
        deadline = time.monotonic() + LONGEST_ANSWER
        with self._told(), self._follow(headers) as answer:
            if answer.status_code != 206:
                raise self._refusal(answer.status_code, pinned)
            version = self._version_of(answer, offset, length)
            if pinned not in (None, version):
                raise self._changed()
            return self._body(answer, length, deadline), version

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn errors of the connection into ours."""
        import httpx

        try:
            yield
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            if isinstance(error.__cause__ or error, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY" in reason:
                raise DeniedError(f"the server of {self._name} cannot be trusted: {reason}") from error
            raise UnavailableError(f"{self._name} cannot be read: {reason}") from error
        except RuntimeError as error:
            if self._open:
                raise
            raise UnavailableError(f"the source {self._name} is closed") from error

    @contextmanager
    def _follow(self, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Ask, and ask on where we are sent: with credentials only the server that they are for."""
        import httpx

        url = self._url
        for _ in range(REDIRECTS + 1):
            sent = dict(headers)
            if self._credentials.authorization and _origin(url) == _origin(self._url):
                sent["Authorization"] = self._credentials.authorization
            asked = url
            if self._credentials.query and url == self._url:
                query = "&".join(filter(None, [url.query.decode(), self._credentials.query]))
                asked = url.copy_with(query=query.encode())
            with self._client.stream("GET", asked, headers=sent) as answer:
                if answer.status_code not in (301, 302, 303, 307, 308):
                    yield answer
                    return
                try:
                    url = url.join(answer.headers.get("Location", ""))
                except httpx.InvalidURL as error:
                    raise UnsupportedError(f"{self._name} sends us to a malformed URL") from error
            if not url.host or url.scheme not in SCHEMES or url.userinfo:
                raise UnsupportedError(f"{self._name} sends us to what is no web server")
            if self._url.scheme == "https" and url.scheme != "https":
                raise DeniedError(f"{self._name} sends us from https to http")
        raise UnsupportedError(f"{self._name} sends us on more than {REDIRECTS} times")

    def _version_of(self, answer: httpx.Response, offset: int, length: int) -> Version:
        """Of an answer that has just the bytes that were asked for."""
        place = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", answer.headers.get("Content-Range", ""))
        if place is None or answer.headers.get("Content-Encoding", "identity") != "identity":
            raise UnsupportedError(f"the server of {self._name} does not say which bytes it gives")
        first, last, size = map(int, place.groups())
        if (first, last) != (offset, offset + length - 1):
            raise CorruptError(f"the server of {self._name} gives other bytes than it was asked for")
        etag, modified = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
        age = _seconds(answer.headers.get("Date", "")) - _seconds(modified)
        return Version(size, etag, modified, fresh=abs(age) < FRESH)

    def _body(self, answer: httpx.Response, length: int, deadline: float) -> bytes:
        parts, left = [], length
        for part in answer.iter_raw():
            left -= len(part)
            parts.append(part)
            if left < 0:
                break
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self._name} is slower than {length} bytes in {LONGEST_ANSWER:.0f} s")
        if left:
            raise UnavailableError(f"{self._name} was cut off, or has more to say than {length} bytes")
        return b"".join(parts)

    def _changed(self) -> LivemountError:
        return CorruptError(f"{self._name} was changed while it was in use", hint="mount the new version by itself")

    def _refusal(self, status: int, pinned: Version | None) -> LivemountError:
        text = f"the server of {self._name} answers {status}"
        if status == 412 or (status == 416 and pinned is not None):
            return self._changed()
        if status in (401, 403, 407):
            return DeniedError(text, hint="credentials go by the password file")
        if status in (404, 410):
            return NotFoundError(text)
        if status == 416:
            return UnsupportedError(f"{self._name} is empty")
        if status == 200:
            return UnsupportedError(f"the server of {self._name} gives it only as a whole, not by ranges")
        if status >= 500 or status in (408, 421, 425, 429):
            return UnavailableError(text)
        return UnsupportedError(text)


def _seconds(date: str) -> float:
    """A time of HTTP, in seconds; infinity where there is none."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except ValueError:
        return math.inf


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}[url.scheme]


def parse_url(text: str) -> httpx.URL:
    """Raises `UsageError`, without what may be secret in the URL."""
    import httpx

    shown = text.partition("?")[0] if "@" not in text else "this"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UsageError(f"{shown!r} is no URL: {error}") from error
    if url.userinfo:
        raise UsageError("the URL has a user or password in it", hint="secrets go by the password file")
    if not url.host or url.fragment or not 0 < (url.port or 80) < 1 << 16:
        raise UsageError(f"{shown!r} is no URL of an object")
    return url


def httpx_client() -> httpx.Client:
    """A client that trusts the system's authorities; no proxy, no .netrc: nothing that the URI does not say."""
    import httpx

    # It logs each URL, with what is secret in it.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return httpx.Client(
        verify=ssl.create_default_context(),
        trust_env=False,
        timeout=httpx.Timeout(PATIENCE, connect=CONNECT_PATIENCE),
        limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
    )


def open(uri: str, password_file: Path | None) -> Source:
    """Look at an object, for its size and version."""
    url = parse_url(uri)
    if password_file is not None and url.scheme != "https":
        raise UsageError(f"{url.host} would get the password in the clear", hint="use https")
    credentials = Credentials.read(password_file) if password_file is not None else Credentials()
    client = httpx_client()
    try:
        return HttpObject(url, credentials, client)
    except BaseException:
        client.close()
        raise
