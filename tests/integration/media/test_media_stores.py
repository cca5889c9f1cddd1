"""A repository in S3 is one as in a folder: for us, for the real restic, and when something is wrong.

Against moto, which is a stand-in and takes any key.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livemount.core.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.repository import Repository, Rules
from tests.support.moto_stand_in import ACCESS_KEY, REGION, SECRET_KEY, MotoStandIn

pytestmark = pytest.mark.integration

MIB = 1 << 20
PASSWORD = "correct horse"
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_REGION": REGION}


class Vault:
    """A bucket, and a password file that opens it."""

    def __init__(self, folder: Path) -> None:
        from botocore.session import Session

        self.server = MotoStandIn()
        self.client: Any = Session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.server.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        self.client.create_bucket(Bucket="vault", CreateBucketConfiguration={"LocationConstraint": REGION})
        self.place = f"restic+s3://127.0.0.1:{self.server.port}/vault/site-1/copies"
        self.password = folder / "password"
        write_secret(self.password, "\n".join([PASSWORD, *(f"{name}={value}" for name, value in KEYS.items())]))

    def packs(self) -> list[str]:
        """The names of the packs, the largest first."""
        listed = self.client.list_objects_v2(Bucket="vault", Prefix="site-1/copies/data/")["Contents"]
        return [each["Key"] for each in sorted(listed, key=lambda each: -int(each["Size"]))]


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    made = Vault(tmp_path)
    try:
        yield made
    finally:
        made.server.stop()


def write_image(path: Path) -> bytes:
    content = random.Random(1).randbytes(5 * MIB) + b"text " * MIB + bytes(6 * MIB)
    path.write_bytes(content)
    return content


def test_a_copy_in_s3_is_made_read_and_checked_by_us_and_by_restic(vault: Vault, tmp_path: Path) -> None:
    content = write_image(tmp_path / "disk.raw")
    made = Repository.init(vault.place, vault.password).backup(tmp_path / "disk.raw", "web01")
    repository = Repository.open(vault.place, vault.password)
    assert repository.find("web01").id == made.id
    assert made.source.startswith(vault.place + "?snapshot=")
    source = open_source(made.source, vault.password)
    assert source.read(0, source.size) == content
    assert source.read(3 * MIB - 7, 1000) == content[3 * MIB - 7 :][:1000]
    assert repository.check(100).ok
    with pytest.raises(ConflictError):
        Repository.init(vault.place, vault.password)

    write_secret(tmp_path / "plain", PASSWORD)
    environment = os.environ | KEYS | {"RESTIC_PASSWORD_FILE": str(tmp_path / "plain"), "AWS_DEFAULT_REGION": REGION}
    there = f"s3:{vault.server.endpoint}/vault/site-1/copies"
    words = ["restic", "--no-cache", "-r", there]
    done = subprocess.run(
        [*words, "check", "--read-data"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    dumped = subprocess.run([*words, "dump", made.id, "/web01/disk0.raw"], env=environment, capture_output=True)
    assert dumped.stdout == content


def test_nothing_is_removed_from_s3(vault: Vault, tmp_path: Path) -> None:
    write_image(tmp_path / "disk.raw")
    repository = Repository.init(vault.place, vault.password)
    repository.backup(tmp_path / "disk.raw", "web01")
    with pytest.raises(UnsupportedError, match="mounts could not be kept safe"):
        repository.prune()
    with pytest.raises(UnsupportedError):
        repository.forget(Rules(keep_last=1))


def test_damage_and_a_dead_server_are_told_apart(vault: Vault, tmp_path: Path) -> None:
    write_image(tmp_path / "disk.raw")
    repository = Repository.init(vault.place, vault.password)
    source = open_source(repository.backup(tmp_path / "disk.raw", "web01").source, vault.password)
    pack = vault.packs()[0]
    whole = vault.client.get_object(Bucket="vault", Key=pack)["Body"].read()
    vault.client.put_object(Bucket="vault", Key=pack, Body=whole[:100])
    with pytest.raises(CorruptError, match="cut short"):
        source.read(0, source.size)
    vault.client.delete_object(Bucket="vault", Key=pack)
    with pytest.raises(CorruptError, match="missing from the repository"):
        source.read(0, source.size)
    vault.client.put_object(Bucket="vault", Key=pack, Body=whole)
    assert len(source.read(0, source.size)) == source.size
    vault.server.hang()
    with pytest.raises(UnavailableError):
        source.read(0, source.size)
    vault.server.go_on()
    assert len(source.read(0, source.size)) == source.size
    vault.server.stop()
    with pytest.raises(UnavailableError):
        source.read(0, source.size)


@pytest.mark.parametrize(
    ("change", "lines", "error"),
    [
        (("site-1", "site-2"), None, NotFoundError),
        (("vault", "other"), None, NotFoundError),
        (("127", "user:word@127"), None, UsageError),
        (("site-1", "../other"), None, UsageError),
        (("+s3", "+gopher"), None, UnsupportedError),
        (("", ""), ["wrong", *(f"{name}={value}" for name, value in KEYS.items())], DeniedError),
        (("", ""), [PASSWORD], DeniedError),
        (("", ""), [PASSWORD, "no line of ours"], UsageError),
    ],
)
def test_what_cannot_be_opened_is_told(
    vault: Vault,
    monkeypatch: pytest.MonkeyPatch,
    change: tuple[str, str],
    lines: list[str] | None,
    error: type[LivemountError],
) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    Repository.init(vault.place, vault.password)
    if lines is not None:
        write_secret(vault.password, "\n".join(lines))
    with pytest.raises(error) as caught:
        Repository.open(vault.place.replace(*change) if change[0] else vault.place, vault.password)
    assert SECRET_KEY not in f"{caught.value} {caught.value.hint}"
