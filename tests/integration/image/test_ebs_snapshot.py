"""An image published by the EBS direct API of moto, a stand-in which checks what AWS checks, and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livemount.core.errors import CorruptError, LivemountError
from livemount.image.ebs_snapshot import BLOCK, DIGEST_TAG, Publisher
from livemount.media import open_source
from livemount.provider.provider import create
from livemount.provider.resources.image_snapshot import ImageSnapshot
from tests.support.aws import Asker, aws_environment
from tests.support.moto_stand_in import REGION, MotoStandIn

pytestmark = pytest.mark.integration

TAGS = {"livemount:environment": "test"}


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoStandIn]:
    """A server for this file."""
    server = MotoStandIn()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def ask(moto: MotoStandIn) -> Iterator[Asker]:
    """Asks it."""
    asker = Asker(moto)
    yield asker
    asker.close()


@pytest.fixture
def publisher(moto: MotoStandIn, ask: Asker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    """Publishes to it; what is there at the end is withdrawn."""
    for name, value in aws_environment(moto).items():
        monkeypatch.setenv(name, value)
    publisher = Publisher(REGION, TAGS)
    yield publisher
    for digest in {tag["Value"] for one in snapshots(ask) for tag in one["Tags"] if tag["Key"] == DIGEST_TAG}:
        publisher.withdraw(digest)
    publisher.close()
    assert snapshots(ask) == []


def snapshots(ask: Asker) -> list[dict[str, Any]]:
    """All that moto has."""
    return list(ask("ec2", "describe_snapshots", OwnerIds=["self"])["Snapshots"])


@pytest.fixture
def image(tmp_path: Path) -> tuple[Path, str]:
    """Blocks with holes between them, and an end that is no whole block."""
    path = tmp_path / "image.raw"
    content = bytearray(5 * BLOCK + 4096)
    for block in (0, 3, 5):
        content[block * BLOCK : block * BLOCK + 512] = bytes([block + 1]) * 512
    path.write_bytes(content)
    return path, hashlib.sha256(content).hexdigest()


def test_bytes_come_back_and_zeros_are_not_sent(
    publisher: Publisher, image: tuple[Path, str], ask: Asker, moto: MotoStandIn
) -> None:
    path, digest = image
    snapshot = publisher.publish(path, digest)
    listed = ask("ebs", "list_snapshot_blocks", SnapshotId=snapshot)
    assert [block["BlockIndex"] for block in listed["Blocks"]] == [0, 3, 5]
    source = open_source(f"ebs://{REGION}/{snapshot}?endpoint={moto.endpoint}", None)
    try:
        content = path.read_bytes()
        assert source.read(0, 6 * BLOCK) == content.ljust(6 * BLOCK, b"\0")
    finally:
        source.close()


def test_published_again_it_is_the_same_snapshot(publisher: Publisher, image: tuple[Path, str], ask: Asker) -> None:
    first = publisher.publish(*image)
    assert publisher.publish(*image) == first
    assert len(snapshots(ask)) == 1
    image[0].write_bytes(b"another")
    another = publisher.publish(image[0], hashlib.sha256(b"another").hexdigest())
    assert another != first
    publisher.withdraw(image[1])
    assert [one["SnapshotId"] for one in snapshots(ask)] == [another]


def test_a_half_made_snapshot_is_not_used_but_made_anew(
    publisher: Publisher, image: tuple[Path, str], ask: Asker
) -> None:
    tags = [{"Key": key, "Value": value} for key, value in {**TAGS, DIGEST_TAG: image[1]}.items()]
    half = ask("ebs", "start_snapshot", VolumeSize=1, Tags=tags)["SnapshotId"]
    assert publisher.find(image[1]) is None
    made = publisher.publish(*image)
    assert made != half
    assert [one["SnapshotId"] for one in snapshots(ask)] == [made]


def test_a_failure_in_the_middle_leaves_nothing(publisher: Publisher, image: tuple[Path, str], ask: Asker) -> None:
    path, digest = image
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    values = {"region": REGION, "path": str(path), "digest": digest, "tags": TAGS}
    with pytest.raises(CorruptError, match="has not the digest"):
        create(ImageSnapshot(), values)
    assert snapshots(ask) == []


def test_a_block_that_is_refused_leaves_nothing(
    publisher: Publisher, image: tuple[Path, str], ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Publisher._put

    def refuse(self: Publisher, snapshot: str, index: int, data: bytes, checksum: str) -> None:
        put(self, snapshot, index, data, checksum if index != 3 else "")

    monkeypatch.setattr(Publisher, "_put", refuse)
    values = {"region": REGION, "path": str(image[0]), "digest": image[1], "tags": TAGS}
    with pytest.raises(LivemountError):
        create(ImageSnapshot(), values)
    assert snapshots(ask) == []


def test_a_snapshot_that_is_not_known_everywhere_yet_is_waited_for(
    publisher: Publisher, image: tuple[Path, str], ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, unknown = publisher._ebs.put_snapshot_block, [True, True]

    def put_later(**words: Any) -> Any:
        if unknown:
            unknown.pop()
            words["SnapshotId"] = "snap-0123456789abcdef0"
        return put(**words)

    monkeypatch.setattr("livemount.image.ebs_snapshot.PAUSE", 0.01)
    monkeypatch.setattr(publisher._ebs, "put_snapshot_block", put_later)
    snapshot = publisher.publish(*image)
    assert unknown == []
    assert len(ask("ebs", "list_snapshot_blocks", SnapshotId=snapshot)["Blocks"]) == 3
