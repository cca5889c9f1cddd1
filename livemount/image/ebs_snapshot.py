"""Publishes an image as an EBS snapshot by the EBS direct API: no volume, no machine, no bucket is needed for it.

A snapshot is known by its tags: the image's digest, and whose it is. Crash contract: one that is half made is pending,
has the same tags, and is deleted by `withdraw`; the next `publish` begins anew. Only a completed one is ever used.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from livemount.core.errors import CorruptError, LivemountError, NotFoundError, UnavailableError
from livemount.media.aws import code_of, make_client, patiently, told

BLOCK = 512 << 10
"""Bytes of a block of the API."""
GIB = 1 << 30
"""Bytes of which a volume has a whole number."""
DIGEST_TAG = "livemount:image"
"""The tag with the SHA-256 of the image's bytes."""
WRITERS = 8
COMPLETION_SECONDS = 900.0
START_SECONDS = 180.0
"""For which parts of AWS may not know a snapshot yet that was just begun."""
PAUSE = 2.0
"""Seconds between questions whether something is so by now."""
TIMEOUT_MINUTES = 60
"""After which AWS gives up a snapshot that nobody writes to."""


class Publisher:
    """The snapshots with `tags` in a region, as clients with the usual credentials see them."""

    def __init__(self, region: str, tags: Mapping[str, str]) -> None:
        """Raises `DeniedError` without credentials."""
        self._tags = dict(tags)
        self._ebs, self._ec2 = (make_client(service, region, "", "", None) for service in ("ebs", "ec2"))

    def publish(self, image: Path, digest: str) -> str:
        """The id of a completed snapshot of the image, made unless it is there. `digest` is the SHA-256 in hex.

        Raises `CorruptError` for an image of another digest, `UnavailableError` where AWS does not answer or complete.
        """
        found = self.find(digest)
        if found is not None:
            return found
        self.withdraw(digest)  # what an interrupted call has left
        tags = [{"Key": key, "Value": value} for key, value in self._all_tags(digest).items()]
        size = image.stat().st_size
        started = self._call(
            self._ebs.start_snapshot,
            VolumeSize=-(-size // GIB),
            Tags=tags,
            Timeout=TIMEOUT_MINUTES,
            Description=f"live mount's machine image {digest[:12]}",
        )
        snapshot: str = started["SnapshotId"]
        if started["BlockSize"] != BLOCK:
            raise LivemountError(f"the EBS direct API has blocks of {started['BlockSize']} bytes, not {BLOCK}")
        whole, checksums = hashlib.sha256(), hashlib.sha256()
        count = 0
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="publish") as pool:
            written = []
            for index, data in _blocks(image, whole):
                checksum = hashlib.sha256(data).digest()
                checksums.update(checksum)
                count += 1
                written.append(pool.submit(self._put, snapshot, index, data, base64.b64encode(checksum).decode()))
            for block in written:
                block.result()
        if whole.hexdigest() != digest:
            raise CorruptError(f"the image {image} has not the digest {digest}", hint="bake it again")
        self._call(
            self._ebs.complete_snapshot,
            SnapshotId=snapshot,
            ChangedBlocksCount=count,
            Checksum=base64.b64encode(checksums.digest()).decode(),
            ChecksumAlgorithm="SHA256",
            ChecksumAggregationMethod="LINEAR",
        )
        self._wait(snapshot)
        return snapshot

    def find(self, digest: str) -> str | None:
        """The id of the completed snapshot of an image."""
        return next((str(one["SnapshotId"]) for one in self._all(digest) if one["State"] == "completed"), None)

    def withdraw(self, digest: str) -> None:
        """Delete all snapshots of an image, whole and half made. Nothing happens when there is none."""
        for one in self._all(digest):
            try:
                self._call(self._ec2.delete_snapshot, SnapshotId=one["SnapshotId"])
            except NotFoundError:
                continue

    def close(self) -> None:
        """Let go of the connections."""
        self._ebs.close()
        self._ec2.close()

    def _all_tags(self, digest: str) -> dict[str, str]:
        return {**self._tags, DIGEST_TAG: digest}

    def _all(self, digest: str) -> list[dict[str, Any]]:
        asked = [{"Name": f"tag:{key}", "Values": [value]} for key, value in self._all_tags(digest).items()]
        answer = self._call(self._ec2.describe_snapshots, OwnerIds=["self"], Filters=asked)
        return list(answer["Snapshots"])

    def _put(self, snapshot: str, index: int, data: bytes, checksum: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._call(
                    self._ebs.put_snapshot_block,
                    SnapshotId=snapshot,
                    BlockIndex=index,
                    BlockData=data,
                    DataLength=len(data),
                    Checksum=checksum,
                    ChecksumAlgorithm="SHA256",
                )
                return
            except NotFoundError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(PAUSE)

    def _wait(self, snapshot: str) -> None:
        deadline = time.monotonic() + COMPLETION_SECONDS
        while True:
            found = self._call(self._ec2.describe_snapshots, SnapshotIds=[snapshot])["Snapshots"]
            state = found[0]["State"] if found else "missing"
            if state == "completed":
                return
            if state != "pending":
                raise LivemountError(f"the snapshot {snapshot} of the machine image is {state}")
            if time.monotonic() > deadline:
                raise UnavailableError(f"the snapshot {snapshot} is not completed after {COMPLETION_SECONDS:.0f} s")
            time.sleep(PAUSE)

    def _call(self, operation: Any, **words: Any) -> dict[str, Any]:
        what = "the machine image's snapshot"
        with told(what, lambda error: NotFoundError(str(error)) if "NotFound" in code_of(error) else None):
            answer: dict[str, Any] = patiently(what, operation, words)
            return answer


def _blocks(image: Path, whole: Any) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each block that is not all zero; the bytes of the image go into `whole`."""
    with image.open("rb") as file:
        index = 0
        while data := file.read(BLOCK):
            whole.update(data)
            if any(data):
                yield index, data.ljust(BLOCK, b"\0")
            index += 1
