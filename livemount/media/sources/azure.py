"""`azure://ACCOUNT-HOST/CONTAINER/BLOB`: a blob, or a snapshot of it, in Azure; so are managed disks by their SAS URLs.

Page blobs say which of their pages were ever written: others are holes. The footer of a fixed VHD, which Azure's disks
have, is no part of the disk. The password file has the shared access signature, `?sv=...&sig=...`.
"""

from __future__ import annotations

import hashlib
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.secrets import read_secret
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source
from livemount.media.sources.http import LONGEST_ANSWER, Credentials, HttpObject, Version, httpx_client

if TYPE_CHECKING:
    import httpx

SCHEMES = ("azure",)
OPTIONS = ("snapshot", "versionid")
API = "2021-12-02"
THROTTLED_PATIENCE = 60.0
"""Seconds for which a request is made anew that the service has no capacity for."""
LONGEST_PAUSE = 10.0
PAGE = 10_000
"""Ranges to list at once; the most there can be."""
LONGEST_LIST = 16 << 20
"""Bytes of such a list."""
FOOTER = 512
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
RANGE = re.compile(r"<(PageRange|ClearRange)>\s*<Start>(\d{1,18})</Start>\s*<End>(\d{1,18})</End>\s*</\1>")
MARKER = re.compile(r"<NextMarker>([^<]+)</NextMarker>")


class BusyError(UnavailableError):
    """The service has no capacity for the request now."""


class AzureBlob(HttpObject):
    """A `Source` over a blob."""

    headers = {"x-ms-version": API}  # noqa: RUF012 (a constant)

    def __init__(self, url: httpx.URL, credentials: Credentials, client: httpx.Client) -> None:
        self._pages = False
        self._size = 0
        super().__init__(url, credentials, client)
        self._size = self.version.size
        footer, _ = self._get(self._size - FOOTER, FOOTER, self.version)
        if is_vhd(footer, self._size, self._name):
            self._size -= FOOTER
        if self._size == 0:
            raise UnsupportedError(f"{self._name} holds no disk")

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._size

    @property
    def identity(self) -> str:
        """Made of the URL, size and ETag."""
        facts = ("azure", str(self._url), self._size, self.version.etag)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _must_be_told_apart(self, version: Version) -> None:
        # Azure gives every change an ETag of its own: one may be read as soon as it is made.
        if not version.strong:
            raise UnsupportedError(f"the server of {self._name} gives no ETag")

    def _version_of(self, answer: httpx.Response, offset: int, length: int) -> Version:
        self._pages = answer.headers.get("x-ms-blob-type") == "PageBlob"
        return super()._version_of(answer, offset, length)

    def _get(self, offset: int, length: int, pinned: Version | None) -> tuple[bytes, Version]:
        return patient()(super()._get, offset, length, pinned)

    def _refusal(self, status: int, pinned: Version | None) -> LivemountError:
        if status in (429, 503):
            return BusyError(f"the server of {self._name} is too busy: it answers {status}")
        if status in (401, 403):
            return DeniedError(
                f"the server of {self._name} answers {status}",
                hint="is the signature in the password file right, for reading, and not expired?",
            )
        return super()._refusal(status, pinned)

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Pages that a page blob does not list are holes; of other blobs all is data."""
        self._check(offset, length)
        if not self._pages or not length:
            return super().extents(offset, length)
        return self._extents(offset, offset + length)

    def _extents(self, at: int, end: int) -> Iterator[Extent]:
        for start, stop, _ in self.ranges(at, end, ""):
            start, stop = max(at, start), min(end, stop)
            if start > at:
                yield Extent(at, start - at, hole=True)
            if stop > start:
                yield Extent(start, stop - start, hole=False)
                at = stop
        if at < end:
            yield Extent(at, end - at, hole=True)

    def ranges(self, at: int, end: int, since: str) -> Iterator[tuple[int, int, bool]]:
        """Start, end and whether it holds data of the ranges of pages that are set; with `since`, the time of an
        earlier snapshot, of those that were set or cleared since then."""
        marker, before = "", at
        while True:
            text = patient()(self._list, at, end, since, marker)
            found = sorted(
                (int(start), int(stop) + 1, kind == "PageRange") for kind, start, stop in RANGE.findall(text)
            )
            for start, stop, data in found:
                if not start < stop <= self.version.size or stop <= before:
                    raise CorruptError(f"the server of {self._name} lists pages that cannot be")
                yield max(start, before), stop, data
                before = stop
            more = MARKER.search(text)
            if more is None:
                return
            marker = more.group(1)

    def _list(self, at: int, end: int, since: str, marker: str) -> str:
        asked = [*parse_qsl(self._url.query.decode()), ("comp", "pagelist"), ("maxresults", str(PAGE))]
        asked += [("prevsnapshot", since)] if since else []
        asked += [("marker", marker)] if marker else []
        query = "&".join(filter(None, [urlencode(asked, quote_via=quote), self._credentials.query]))
        first, last = at // FOOTER * FOOTER, -(-end // FOOTER) * FOOTER - 1
        headers = {**self.headers, **self.version.conditions(), "x-ms-range": f"bytes={first}-{last}"}
        deadline = time.monotonic() + LONGEST_ANSWER
        url = self._url.copy_with(query=query.encode())
        with self._told(), self._client.stream("GET", url, headers=headers) as answer:
            if answer.status_code != 200:
                raise self._refusal(answer.status_code, self.version)
            text = bytearray()
            for part in answer.iter_bytes():
                text += part
                if len(text) > LONGEST_LIST or time.monotonic() > deadline:
                    raise UnavailableError(f"the list of pages of {self._name} does not come to an end")
            return text.decode("utf-8", errors="replace")


def patient() -> Retrying:
    """Asks a busy service again, after pauses that grow."""
    return Retrying(
        retry=retry_if_exception_type(BusyError),
        wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE),
        stop=stop_after_delay(THROTTLED_PATIENCE),
        reraise=True,
    )


def is_vhd(footer: bytes, size: int, name: str) -> bool:
    """Whether the last sector of a blob of `size` bytes is the footer of a fixed VHD over all the rest.

    Raises `UnsupportedError` for other kinds of VHD.
    """
    if len(footer) != FOOTER or not footer.startswith(b"conectix"):
        return False
    current, kind, checksum = *struct.unpack_from(">Q", footer, 48), *struct.unpack_from(">II", footer, 60)
    counted = ~(sum(footer) - sum(footer[64:68])) & 0xFFFFFFFF
    if counted != checksum:
        return False
    if kind in (DYNAMIC, DIFFERENCING):
        raise UnsupportedError(f"{name} is a VHD of growing size", hint="Azure's disks are fixed ones")
    return bool(kind == FIXED and current == size - FOOTER)


def read_signature(file: Path) -> Credentials:
    """Raises `DeniedError` for a file that holds no shared access signature."""
    text = read_secret(file).removeprefix("?")
    if not text.isprintable() or not text.isascii() or " " in text or not dict(parse_qsl(text)).get("sig"):
        raise DeniedError(f"{file} holds no shared access signature", hint="one line, as in ?sv=...&sr=b&sig=...")
    return Credentials(query=text)


def _parse(text: str) -> tuple[SourceUri, httpx.URL]:
    import httpx

    uri = SourceUri.parse(text, host=True)
    given = {name: value for name, value in zip(OPTIONS, uri.require(optional=OPTIONS), strict=True) if value}
    if len(uri.path.parts) < 3:
        raise UsageError(
            f"{text!r} names no blob", hint="for example azure://acme.blob.core.windows.net/disks/web01.vhd"
        )
    if "sig" in given or any(not re.fullmatch(r"[0-9T:.Z-]{1,40}", value) for value in given.values()):
        raise UsageError(f"{text!r} has a snapshot that is no time", hint="for example 2026-03-01T12:00:00.0000000Z")
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    port = f":{uri.port}" if uri.port is not None else ""
    query = f"?{urlencode(given, quote_via=quote)}" if given else ""
    return uri, httpx.URL(f"https://{host}{port}{quote(str(uri.path))}{query}")


def open(uri: str, password_file: Path | None) -> Source:
    """Look at a blob, for its size and version."""
    return open_blob(uri, password_file)


def open_blob(uri: str, password_file: Path | None) -> AzureBlob:
    """The same, as what it is."""
    _, url = _parse(uri)
    credentials = read_signature(password_file) if password_file is not None else Credentials()
    client = httpx_client()
    try:
        return AzureBlob(url, credentials, client)
    except BaseException:
        client.close()
        raise


def changes(before: str, after: str, password_file: Path | None) -> Iterator[tuple[int, int]]:
    """Offset and length of what was set or cleared between a snapshot of a page blob and a later one, or the blob.

    Raises `UsageError` for what cannot be compared.
    """
    old, new = _parse(before)[0], _parse(after)[0]
    since = old.options.get("snapshot", "")
    if (old.host, old.port, old.path) != (new.host, new.port, new.path) or not since:
        raise UsageError("the two are not snapshots of one blob", hint="the same URI, with another `snapshot=`")
    blob = open_blob(after, password_file)
    try:
        for start, stop, _ in blob.ranges(0, blob.size, since):
            yield start, min(stop, blob.size) - start
    finally:
        blob.close()
