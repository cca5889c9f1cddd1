"""`s3://BUCKET/KEY`: a raw disk image in S3 or a store that speaks its protocol.

What is read is pinned to the object's version, where the bucket keeps versions, and in any case to its ETag.
"""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livemount.core.errors import (
    CorruptError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.media.aws import code_of, make_client, patiently, status_of, told
from livemount.media.registry import SourceUri
from livemount.media.source import RangeSource, Source

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

SCHEMES = ("s3",)
CHUNK = 256 << 10
"""A request costs its way to and fro: as long as some 256 KiB in many networks."""
PIECE = 64 << 10
LONGEST_ANSWER = 60.0
"""Seconds for one answer, however steadily it trickles."""


class S3Object(RangeSource):
    """A `Source` over an object."""

    def __init__(self, client: Any, uri: SourceUri) -> None:
        version, self._region, self._endpoint, _ = uri.require(optional=OPTIONS)
        self._client = client
        self._asked = {"Bucket": uri.host, "Key": str(uri.path)[1:]} | ({"VersionId": version} if version else {})
        self._name = f"s3://{uri.host}{uri.path}"
        self._size = -1
        self._etag = ""
        _, answer = self._get(0, 1, {})
        self._size = self._size_of(answer)
        self._etag = str(answer.get("ETag", ""))
        if not self._etag.startswith('"'):
            raise UnsupportedError(f"the server of {self._name} tells no ETag to know a version of it by")
        if self._size == 0 or self._size % 512:
            raise UnsupportedError(
                f"{self._name} is no raw disk image: it has {self._size} bytes, not a multiple of 512"
            )
        kept = str(answer.get("VersionId", "null"))
        self._version = version or ("" if kept == "null" else kept)
        if self._version:
            self._asked["VersionId"] = self._version

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._size

    @property
    def identity(self) -> str:
        """Made of endpoint, bucket, key, version, size and ETag."""
        names = self._asked["Bucket"], self._asked["Key"], self._version
        return hashlib.sha256(repr(("s3", self._endpoint, names, self._size, self._etag)).encode()).hexdigest()

    @property
    def chunk_size(self) -> int:
        """256 KiB."""
        return CHUNK

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        if not length:
            return b""
        data, answer = self._get(offset, length, {"IfMatch": self._etag})
        if (self._size_of(answer), answer.get("ETag")) != (self._size, self._etag):
            raise self._changed()
        return data

    def _get(self, offset: int, length: int, conditions: dict[str, str]) -> tuple[bytes, dict[str, Any]]:
        words = {**self._asked, **conditions, "Range": f"bytes={offset}-{offset + length - 1}"}
        deadline = time.monotonic() + LONGEST_ANSWER
        with told(self._name, self._meaning):
            answer = patiently(self._name, self._client.get_object, words)
            with answer["Body"] as body:
                if not str(answer.get("ContentRange", "")).startswith(f"bytes {offset}-{offset + length - 1}/"):
                    raise UnsupportedError(f"the server of {self._name} does not give the range it is asked for")
                data = bytearray()
                while piece := body.read(min(PIECE, length + 1 - len(data))):
                    data += piece
                    if time.monotonic() > deadline:
                        raise UnavailableError(f"{self._name} is slower than {length} bytes in {LONGEST_ANSWER:.0f} s")
        if len(data) != length:
            raise UnavailableError(f"{self._name} was cut off, or has more to say than {length} bytes")
        return bytes(data), answer

    def _size_of(self, answer: dict[str, Any]) -> int:
        told_size = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", str(answer.get("ContentRange", "")))
        if told_size is None:
            raise UnsupportedError(f"the server of {self._name} does not tell its size")
        return int(told_size.group(1))

    def _meaning(self, error: ClientError) -> LivemountError | None:
        if status_of(error) == 416 or code_of(error) == "InvalidRange":
            return self._changed() if self._etag else UnsupportedError(f"{self._name} is empty")
        if code_of(error) == "MethodNotAllowed":
            return NotFoundError(f"this version of {self._name} says that the object was deleted")
        if code_of(error) in ("NoSuchVersion", "InvalidArgument") and "VersionId" in self._asked:
            return NotFoundError(f"{self._name} has no version {self._asked['VersionId']}")
        return None

    def _changed(self) -> LivemountError:
        return CorruptError(f"{self._name} was changed while it was in use", hint="mount the new version by itself")

    def close(self) -> None:
        """Let go of the connections."""
        self._open = False
        self._client.close()


OPTIONS = ("versionId", "region", "endpoint", "profile")


def open(uri: str, password_file: Path | None) -> Source:
    """Look at an object, for its size and version."""
    parsed = SourceUri.parse(uri, host=True)
    _, region, endpoint, profile = parsed.require(optional=OPTIONS)
    if parsed.port is not None or str(parsed.path) == "/" or re.search(r"//|/$|/\.(/|$)", uri.partition("?")[0][5:]):
        raise UsageError(f"{uri!r} names no object", hint="for example s3://images/web01.raw")
    client = make_client("s3", region, endpoint, profile, password_file)
    try:
        return S3Object(client, parsed)
    except BaseException:
        client.close()
        raise
