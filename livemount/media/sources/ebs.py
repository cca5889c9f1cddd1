"""`ebs://REGION/SNAPSHOT`: an EBS snapshot, read by the EBS direct API without making a volume of it.

A block that the API does not list was never written: a hole. Each block comes with its SHA-256, which is checked.
Blocks are read by tokens that the lists give and that expire: lists are made as they are needed, a window of blocks
each, and made again.
"""

from __future__ import annotations

import base64
import hashlib
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
from livemount.media.aws import code_of, make_client, patiently, told
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, RangeSource, Source

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

SCHEMES = ("ebs",)
UNIT = 1 << 30
"""Bytes in which the API tells a volume's size."""
LARGEST_BLOCK = 4 << 20
LARGEST_VOLUME = 64 << 40
WINDOW = 1000
"""Blocks whose tokens are listed together: 500 MiB of a disk."""
WINDOWS = 32
"""Windows that are remembered."""
SMALLEST_PAGE = 100
"""Blocks to list at once; there cannot be less."""
PAGE = 10_000
"""Blocks to list at once where tokens are not wanted; the most there can be."""
TOKEN_SECONDS = 45 * 60.0
"""For which tokens are believed, whatever else the API says of them."""
READERS = 16
"""Threads for reads of several blocks."""


class EbsSnapshot(RangeSource):
    """A `Source` over a snapshot."""

    def __init__(self, client: Any, uri: SourceUri) -> None:
        self._client = client
        self._id = uri.path.name
        self._name = f"EBS snapshot {self._id}"
        self._region, self._endpoint = uri.host, uri.options.get("endpoint", "")
        self._windows: OrderedDict[int, tuple[float, dict[int, str]]] = OrderedDict()
        self._listing: dict[int, threading.Lock] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="ebs")
        first = self._call(client.list_snapshot_blocks, SnapshotId=self._id, MaxResults=SMALLEST_PAGE)
        self._size, self._block = checked_sizes(self._name, first)

    @property
    def size(self) -> int:
        """Bytes of the volume."""
        return self._size

    @property
    def identity(self) -> str:
        """Made of region, id and size: a snapshot never changes."""
        facts = ("ebs", self._endpoint, self._region, self._id, self._size)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def chunk_size(self) -> int:
        """The API's block: 512 KiB."""
        return max(4096, self._block)

    def _call(self, operation: Any, **words: Any) -> dict[str, Any]:
        with told(self._name, self._meaning):
            answer: dict[str, Any] = patiently(self._name, operation, words)
            return answer

    def _meaning(self, error: ClientError) -> LivemountError | None:
        reason = error.response.get("Reason", "")
        if reason == "INVALID_SNAPSHOT_ID":
            return NotFoundError(f"{self._name} does not exist in {self._region}, or is not completed")
        if code_of(error) == "ValidationException" and reason in ("INVALID_BLOCK_TOKEN", "INVALID_PAGE_TOKEN"):
            return StaleTokenError(f"a token of {self._name} is not valid any more")
        return None

    def _blocks(self, first: int, end: int, page: int) -> Iterator[tuple[int, str]]:
        """Index and token of the blocks there are from `first` to before `end`, in order."""
        asked: dict[str, Any] = {"StartingBlockIndex": first}
        last = first - 1
        while True:
            try:
                answer = self._call(self._client.list_snapshot_blocks, SnapshotId=self._id, MaxResults=page, **asked)
            except StaleTokenError:
                if "NextToken" not in asked:
                    raise
                asked = {"StartingBlockIndex": last + 1}  # the list was read for more than an hour
                continue
            if checked_sizes(self._name, answer) != (self._size, self._block):
                raise CorruptError(f"{self._name} has changed its size")
            for block in answer.get("Blocks", ()):
                index = int(block["BlockIndex"])
                if index >= end:
                    return
                if index > last:
                    last = index
                    yield index, str(block["BlockToken"])
            if not answer.get("NextToken"):
                return
            asked = {"NextToken": answer["NextToken"]}

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """Blocks that are listed are data."""
        self._check(offset, length)
        return self._extents(offset, offset + length) if length else iter(())

    def _extents(self, at: int, end: int) -> Iterator[Extent]:
        begin = data_end = at  # of the data that was found last
        for index, _ in self._blocks(at // self._block, -(-end // self._block), PAGE):
            start, stop = max(at, index * self._block), min(end, (index + 1) * self._block)
            if start > data_end:
                if data_end > begin:
                    yield Extent(begin, data_end - begin, hole=False)
                yield Extent(data_end, start - data_end, hole=True)
                begin = start
            data_end = stop
        if data_end > begin:
            yield Extent(begin, data_end - begin, hole=False)
        if end > data_end:
            yield Extent(data_end, end - data_end, hole=True)

    def _tokens(self, window: int) -> dict[int, str]:
        """Of the blocks of a window, as they were listed not long ago."""
        with self._lock:
            listing = self._listing.setdefault(window, threading.Lock())
        with listing:
            with self._lock:
                when, tokens = self._windows.get(window, (0.0, {}))
                if window in self._windows:
                    self._windows.move_to_end(window)
                    if time.monotonic() - when < TOKEN_SECONDS:
                        return tokens
            tokens = dict(self._blocks(window * WINDOW, (window + 1) * WINDOW, max(WINDOW, SMALLEST_PAGE)))
            with self._lock:
                self._windows[window] = time.monotonic(), tokens
                self._windows.move_to_end(window)
                while len(self._windows) > WINDOWS:
                    gone, _ = self._windows.popitem(last=False)
                    self._listing.pop(gone, None)
            return tokens

    def _forget(self, window: int, tokens: dict[int, str]) -> None:
        with self._lock:
            if self._windows.get(window, (0.0, {}))[1] is tokens:
                del self._windows[window]

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._check(offset, length)
        if not length:
            return b""
        first, last = offset // self._block, (offset + length - 1) // self._block
        try:
            blocks = (
                [self._read_block(first)]
                if first == last
                else list(self._pool.map(self._read_block, range(first, last + 1)))
            )
        except RuntimeError as error:
            if self._open:
                raise
            raise UnavailableError(f"the source {self._name} is closed") from error
        start = offset - first * self._block
        return b"".join(blocks)[start : start + length]

    def _read_block(self, index: int) -> bytes:
        for last_try in (False, True):
            tokens = self._tokens(index // WINDOW)
            if index not in tokens:
                return bytes(self._block)
            try:
                return self._get(index, tokens[index])
            except StaleTokenError:
                self._forget(index // WINDOW, tokens)
                if last_try:
                    raise
        raise AssertionError

    def _get(self, index: int, token: str) -> bytes:
        what = f"block {index} of {self._name}"
        answer = self._call(self._client.get_snapshot_block, SnapshotId=self._id, BlockIndex=index, BlockToken=token)
        with answer["BlockData"] as body, told(what):
            data: bytes = body.read(self._block + 1)
        if answer.get("DataLength") != self._block:
            raise CorruptError(f"{what} is said to have {answer.get('DataLength')} bytes, not {self._block}")
        if len(data) != self._block:
            raise UnavailableError(f"{what} was cut off: {len(data)} bytes of {self._block}")
        if answer.get("ChecksumAlgorithm") != "SHA256":
            raise UnsupportedError(f"{what} has no SHA256, but {answer.get('ChecksumAlgorithm')!r}")
        if base64.b64encode(hashlib.sha256(data).digest()).decode() != answer.get("Checksum"):
            raise CorruptError(f"{what} does not match its checksum")
        return data

    def close(self) -> None:
        """Let go of the connections."""
        self._open = False
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()


class StaleTokenError(UnavailableError):
    """A token has expired."""


def checked_sizes(name: str, answer: dict[str, Any]) -> tuple[int, int]:
    """Bytes of the volume and of a block. Raises `UnsupportedError` for what they cannot be."""
    size, block = int(answer["VolumeSize"]) * UNIT, int(answer["BlockSize"])
    if not 0 < size <= LARGEST_VOLUME or not 512 <= block <= LARGEST_BLOCK or block & (block - 1) or size % block:
        raise UnsupportedError(f"{name} is said to have {size} bytes in blocks of {block}")
    return size, block


def parse(text: str) -> SourceUri:
    """Raises `UsageError` for anything but the URI of a snapshot."""
    uri = SourceUri.parse(text, host=True)
    uri.require(optional=("endpoint", "profile"))
    if not re.fullmatch(r"/snap-[0-9a-f]{8,32}", str(uri.path)) or uri.port is not None:
        raise UsageError(
            f"{text!r} names no EBS snapshot", hint="for example ebs://eu-central-1/snap-0123456789abcdef0"
        )
    return uri


def _client(uri: SourceUri, password_file: Path | None) -> Any:
    endpoint, profile = uri.require(optional=("endpoint", "profile"))
    return make_client("ebs", uri.host, endpoint, profile, password_file)


def open(uri: str, password_file: Path | None) -> Source:
    """Look at a snapshot."""
    parsed = parse(uri)
    client = _client(parsed, password_file)
    try:
        return EbsSnapshot(client, parsed)
    except BaseException:
        client.close()
        raise


def changes(before: str, after: str, password_file: Path | None) -> Iterator[tuple[int, int]]:
    """Offset and length of what differs between two snapshots of a volume, in order, neighbours joined.

    Raises `UsageError` for snapshots that cannot be compared.
    """
    old, new = parse(before), parse(after)
    if (old.host, old.options) != (new.host, new.options):
        raise UsageError("the two snapshots are not in one place", hint="same region and options")
    client = _client(new, password_file)
    name = f"changes from {old.path.name} to {new.path.name}"

    def unrelated(error: ClientError) -> LivemountError | None:
        reason = error.response.get("Reason", "")
        if reason == "UNRELATED_SNAPSHOTS":
            return UsageError(f"{old.path.name} and {new.path.name} are not of one volume")
        if reason == "INVALID_SNAPSHOT_ID":
            return NotFoundError(f"{name}: one of them does not exist in {new.host}, or is not completed")
        return None

    try:
        asked: dict[str, Any] = {}
        begin = end = 0
        while True:
            words = {"FirstSnapshotId": old.path.name, "SecondSnapshotId": new.path.name, "MaxResults": PAGE, **asked}
            with told(name, unrelated):
                answer = patiently(name, client.list_changed_blocks, words)
            size, block = checked_sizes(name, answer)
            for index in (int(found["BlockIndex"]) for found in answer.get("ChangedBlocks", ())):
                start = index * block
                if not end <= start < size:
                    raise CorruptError(f"{name} are out of order or beyond the volume")
                if start > end:
                    if end > begin:
                        yield begin, end - begin
                    begin = start
                end = start + block
            if not answer.get("NextToken"):
                break
            asked = {"NextToken": answer["NextToken"]}
        if end > begin:
            yield begin, end - begin
    finally:
        client.close()
