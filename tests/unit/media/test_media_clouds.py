"""Clouds' sources before anything is asked: URIs, endpoints, files of keys, footers of VHDs, errors of AWS."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.secrets import write_secret
from livemount.media import aws, open_source
from livemount.media.sources import azure, ebs

SNAPSHOT = "snap-0123456789abcdef0"


@pytest.mark.parametrize(
    "uri",
    [
        "ebs:///snap-0123456789abcdef0",
        "ebs://eu-central-1/vol-0123456789abcdef0",
        f"ebs://eu-central-1/{SNAPSHOT}/x",
        f"ebs://eu-central-1:1/{SNAPSHOT}",
        f"ebs://eu-central-1/{SNAPSHOT}?secret=x",
        f"ebs://eu-central-1/{SNAPSHOT}?endpoint=http://10.0.0.1:5000",
        f"ebs://eu-central-1/{SNAPSHOT}?endpoint=http://localhost.example",
        f"ebs://eu-central-1/{SNAPSHOT}?endpoint=https://me:secret@example.org",
        f"ebs://eu-central-1/{SNAPSHOT}?endpoint=file:///etc/passwd",
        "s3://images",
        "s3://images/",
        "s3://images/a//b",
        "s3://images/a/",
        "s3://images/a/./b",
        "s3://key:secret@images/a",
        "s3://images/a?endpoint=http://minio.example:9000",
        "azure://acme.blob.core.windows.net/web01.vhd",
        "azure://acme.blob.core.windows.net/disks/web01.vhd?sv=1&sig=secret",
        "azure://acme.blob.core.windows.net/disks/web01.vhd?snapshot=%26sig%3D1",
    ],
)
def test_uris_that_name_nothing_or_would_leak_are_refused(uri: str) -> None:
    with pytest.raises(UsageError):
        open_source(uri, None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AKIA:secret",
        "AWS_ACCESS_KEY_ID=a",
        "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=",
        "AWS_ACCESS_KEY_ID=a\nAWS_ACCESS_KEY_ID=b\nAWS_SECRET_ACCESS_KEY=c",
        "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\nAWS_PROFILE=c",
    ],
)
def test_files_without_keys_are_refused(tmp_path: Path, text: str) -> None:
    write_secret(tmp_path / "keys", text)
    with pytest.raises(DeniedError):
        aws.read_keys(tmp_path / "keys")


def test_files_with_keys_are_read(tmp_path: Path) -> None:
    write_secret(tmp_path / "keys", "AWS_SECRET_ACCESS_KEY=b=/+\n\nAWS_ACCESS_KEY_ID=a\nAWS_SESSION_TOKEN=c\n")
    assert aws.read_keys(tmp_path / "keys") == {
        "aws_access_key_id": "a",
        "aws_secret_access_key": "b=/+",
        "aws_session_token": "c",
    }


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("AccessDenied", 403, DeniedError),
        ("ExpiredTokenException", 400, DeniedError),
        ("NoSuchKey", 404, NotFoundError),
        ("SlowDown", 503, UnavailableError),
        ("RequestThrottledException", 400, UnavailableError),
        ("InternalServerException", 500, UnavailableError),
        ("PreconditionFailed", 412, CorruptError),
        ("InvalidObjectState", 403, UnsupportedError),
        ("Teapot", 418, UnsupportedError),
    ],
)
def test_errors_of_aws_have_a_meaning(code: str, status: int, error: type[LivemountError]) -> None:
    from botocore.exceptions import ClientError

    said = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    with pytest.raises(error), aws.told("the thing"):
        raise ClientError(said, "GetObject")


@pytest.mark.parametrize(
    ("size", "block"), [(0, 524288), (65537, 524288), (1, 0), (1, 3 << 18), (1, 256), (1, 1 << 30)]
)
def test_sizes_that_cannot_be_are_refused(size: int, block: int) -> None:
    with pytest.raises(UnsupportedError):
        ebs.checked_sizes("the snapshot", {"VolumeSize": size, "BlockSize": block})


@given(st.binary(min_size=512, max_size=512), st.integers(min_value=0, max_value=1 << 50))
def test_any_last_sector_is_a_footer_or_is_not(sector: bytes, size: int) -> None:
    assert azure.is_vhd(sector, size, "the blob") is False
    assert azure.is_vhd(b"conectix" + sector[8:], size, "the blob") is False
