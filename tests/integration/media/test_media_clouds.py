"""Clouds' sources beyond the contract: versions, tokens that expire, sizes of blocks, what differs between snapshots.

Against moto and Azurite, which are stand-ins; what they have not (Azure's differences) nginx answers as documented.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from livemount.cli.main import app
from livemount.core.errors import CorruptError, DeniedError, NotFoundError, UnsupportedError, UsageError
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.registry import changes_between
from livemount.media.sources import azure, ebs
from tests.support.foreign import MIB, free_port
from tests.support.foreign_clouds import (
    AzureBlockSubject,
    AzureSubject,
    EbsSubject,
    S3Subject,
    aws,
    end_stand_ins,
    vhd,
)
from tests.support.moto_stand_in import ACCESS_KEY, EBS_BLOCK, SECRET_KEY, MotoStandIn

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    yield
    end_stand_ins()


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[EbsSubject]:
    subject = EbsSubject(tmp_path)
    yield subject
    subject.close_all()


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[S3Subject]:
    subject = S3Subject(tmp_path)
    yield subject
    subject.close_all()


@pytest.fixture
def pages(tmp_path: Path) -> Iterator[AzureSubject]:
    subject = AzureSubject(tmp_path)
    yield subject
    subject.close_all()


def test_ebs_tokens_that_expire_are_asked_for_again(snapshot: EbsSubject) -> None:
    source, content = snapshot.open(), snapshot.content
    assert source.read(0, MIB) == content[:MIB]
    before = (snapshot.folder / "access.log").read_text().count("/blocks?")
    snapshot.put_blocks()  # the old tokens are not valid any more
    assert source.read(0, source.size) == content
    after = (snapshot.folder / "access.log").read_text().count("/blocks?")
    assert after > before


def test_ebs_tokens_are_not_kept_for_ever(snapshot: EbsSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    source = snapshot.open()
    source.read(0, 512)
    monkeypatch.setattr(ebs, "TOKEN_SECONDS", 0.0)
    before = (snapshot.folder / "access.log").read_text().count("/blocks?")
    source.read(0, 512)
    assert (snapshot.folder / "access.log").read_text().count("/blocks?") == before + 1


def test_ebs_windows_are_forgotten_when_there_are_many(snapshot: EbsSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ebs, "WINDOW", 2)
    monkeypatch.setattr(ebs, "WINDOWS", 2)
    source = snapshot.open()
    assert source.read(0, source.size) == snapshot.content
    assert isinstance(source, ebs.EbsSnapshot)
    assert len(source._windows) == 2


def test_ebs_blocks_have_the_size_that_the_api_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = MotoStandIn(ebs_block=512)  # as moto has it
    monkeypatch.setattr(ebs, "UNIT", MIB)
    keys = tmp_path / "keys"
    write_secret(keys, f"AWS_ACCESS_KEY_ID={ACCESS_KEY}\nAWS_SECRET_ACCESS_KEY={SECRET_KEY}\n")
    try:
        client = aws("ebs", own.endpoint)
        subject = EbsSubject.__new__(EbsSubject)
        subject.snapshot = client.start_snapshot(VolumeSize=1)["SnapshotId"]
        for index in (0, 1, 7, 2047):
            subject.put_block(client, index, bytes([index % 251]) * 512)
        client.close()
        source = open_source(f"ebs://eu-central-1/{subject.snapshot}?endpoint={own.endpoint}", keys)
        wanted = bytearray(MIB)
        for index in (0, 1, 7, 2047):
            wanted[index * 512 : (index + 1) * 512] = bytes([index % 251]) * 512
        assert (source.size, source.chunk_size) == (MIB, 4096)
        assert source.read(0, MIB) == wanted
        assert [tuple(extent) for extent in source.extents(0, MIB)] == [
            (0, 1024, False),
            (1024, 2560, True),
            (3584, 512, False),
            (4096, MIB - 4608, True),
            (MIB - 512, 512, False),
        ]
        source.close()
    finally:
        own.stop()


def test_ebs_tells_what_changed(snapshot: EbsSubject) -> None:
    # moto lists blocks of the first snapshot that the second has not, or has others in their place.
    first = snapshot.snapshot
    client = aws("ebs")
    snapshot.snapshot = client.start_snapshot(VolumeSize=11)["SnapshotId"]
    for index, data in snapshot.blocks():
        snapshot.put_block(client, index, bytes(len(data)) if index in (1, 2, 10) else data)
    client.close()
    before, after = snapshot.uri.replace(snapshot.snapshot, first), snapshot.uri
    changed = [index for index, _ in snapshot.blocks() if index in (1, 2, 10)]
    assert changed == [1, 2, 10]
    wanted = [[EBS_BLOCK, 2 * EBS_BLOCK], [10 * EBS_BLOCK, EBS_BLOCK]]
    done = CliRunner().invoke(app, ["changes", before, after, "--password-file", str(snapshot.password)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == wanted
    same = CliRunner().invoke(app, ["changes", after, after, "--password-file", str(snapshot.password)])
    assert json.loads(same.stdout) == []
    with pytest.raises(UsageError):
        list(changes_between(before.replace("eu-central-1", "eu-west-1"), after, snapshot.password))
    with pytest.raises(UnsupportedError):
        changes_between("file:///a", "file:///b", None)


def test_s3_reads_a_version_though_there_is_a_newer_one(bucket: S3Subject) -> None:
    bucket.set_versioning()
    bucket.serve_another()
    source, content = bucket.open(), bucket.content
    old = bucket.versions()[0]
    bucket.serve_another()
    assert source.read(0, MIB) == content[:MIB]
    named = open_source(f"{bucket.uri}&versionId={old}", bucket.password)
    assert named.read(0, source.size) == content
    assert named.identity == source.identity
    named.close()
    with pytest.raises(NotFoundError):
        open_source(f"{bucket.uri}&versionId=nonesuch", bucket.password)


def test_s3_objects_that_are_replaced_are_not_mixed(bucket: S3Subject) -> None:
    source = bucket.open()
    bucket.serve_another()
    with pytest.raises(CorruptError, match="was changed"):
        source.read(0, 4096)


def test_s3_keys_of_two_kinds_and_of_none(bucket: S3Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="twice"):
        open_source(f"{bucket.uri}&profile=other", bucket.password)
    with pytest.raises(DeniedError):
        open_source(f"{bucket.uri}&profile=other", None)
    assert bucket.password is not None
    for line in bucket.password.read_text().splitlines():
        monkeypatch.setenv(*line.split("=", 1))
    source = open_source(bucket.uri, None)  # the environment's
    assert source.size == len(bucket.content)
    source.close()


def test_an_azure_blob_that_is_written_to_is_not_mixed(pages: AzureSubject) -> None:
    source = pages.open()
    pages.put_pages(0, b"another one".ljust(512, b"\0"))
    with pytest.raises(CorruptError, match="was changed"):
        source.read(0, 4096)
    with pytest.raises(CorruptError, match="was changed"):
        list(source.extents(0, source.size))


def test_an_azure_snapshot_stays_as_it_was(pages: AzureSubject) -> None:
    content = pages.content
    made = pages.request("PUT", "comp=snapshot", {}, path="/web01.vhd").headers["x-ms-snapshot"]
    pages.put_pages(0, b"another one".ljust(512, b"\0"))
    source = open_source(f"{pages.uri}?snapshot={made}", pages.password)
    assert source.read(0, source.size) == content
    assert sum(extent.length for extent in source.extents(0, source.size) if extent.hole) > MIB
    source.close()


def test_azure_vhds_that_grow_are_refused(tmp_path: Path) -> None:
    subject = AzureBlockSubject(tmp_path)
    try:
        subject.put(vhd(bytes(MIB), kind=3))
        with pytest.raises(UnsupportedError, match="growing"):
            subject.open()
        subject.put(bytes(MIB) + b"conectix".ljust(512, b"\0"))  # no footer: its checksum is wrong
        assert subject.open().size == MIB + 512
    finally:
        subject.close_all()


class Differing(AzureSubject):
    """Answers what differs from an earlier snapshot as Azure's documentation has it; Azurite does not know it."""

    def __init__(self, folder: Path) -> None:
        self.own_port = free_port()
        super().__init__(folder)

    @property
    def more(self) -> str:  # type: ignore[override]
        """Directives of the server."""
        start = '<?xml version="1.0" encoding="utf-8"?><PageList>'
        last = 10 * MIB + 1023
        first = f"{start}<PageRange><Start>0</Start><End>511</End></PageRange>" + (
            "<ClearRange><Start>4096</Start><End>8191</End></ClearRange><NextMarker>page two</NextMarker></PageList>"
        )
        second = f"{start}<PageRange><Start>{10 * MIB}</Start><End>{last}</End></PageRange><NextMarker/></PageList>"
        # nginx itself answers no request with If-Match: it passes it on to itself without.
        own = f"proxy_set_header If-Match ''; proxy_pass http://127.0.0.1:{self.own_port}"
        return (
            super().more.replace(
                "proxy_pass",
                """
                set $what "$arg_prevsnapshot/$arg_marker";
                if ($what = "2026-01-01T00%3A00%3A00.0000000Z/") { rewrite ^ /first last; }
                if ($what = "2026-01-01T00%3A00%3A00.0000000Z/page%20two") { rewrite ^ /second last; }
                proxy_pass""",
                1,
            )
            + f"""
            listen 127.0.0.1:{self.own_port};
            location = /first {{ {own}/1; }} location = /1 {{ return 200 '{first}'; }}
            location = /second {{ {own}/2; }} location = /2 {{ return 200 '{second}'; }}
        """
        )


def test_azure_tells_what_changed(tmp_path: Path) -> None:
    subject = Differing(tmp_path)
    try:
        before = f"{subject.uri}?snapshot=2026-01-01T00:00:00.0000000Z"
        found = list(changes_between(before, subject.uri, subject.password))
        # The last range goes on into the footer, which is no part of the disk.
        assert found == [(0, 512), (4096, 4096), (10 * MIB, 512)]
        with pytest.raises(UsageError):
            list(changes_between(subject.uri, subject.uri, subject.password))
    finally:
        subject.close_all()


def test_an_azure_signature_is_looked_at_before_it_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "signature"
    write_secret(file, "not a signature\n")
    with pytest.raises(DeniedError):
        azure.read_signature(file)
    write_secret(file, "?sv=1&sig=abc%3D\n")
    assert azure.read_signature(file).query == "sv=1&sig=abc%3D"
