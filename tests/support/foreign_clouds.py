"""Clouds' sources for the contract test, by moto and Azurite, which are stand-ins: no cloud was asked.

Each is reached through an nginx of the test's own, which can be away, hang, and say that the service is busy.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx

from livemount.core.secrets import write_secret
from livemount.media.sources import ebs
from tests.support.azurite_stand_in import ACCOUNT, AzuriteStandIn
from tests.support.foreign import MIB, HttpsSubject, HttpSubject
from tests.support.moto_stand_in import ACCESS_KEY, EBS_BLOCK, REGION, SECRET_KEY, MotoStandIn

NO_KEYS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "NO_PROXY": "127.0.0.1",
}
ACTIONS = {"Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}], "Version": "2012-10-17"}


@cache
def moto() -> MotoStandIn:
    """One for all subjects."""
    return MotoStandIn()


@cache
def azurite() -> AzuriteStandIn:
    """One for all subjects."""
    return AzuriteStandIn(Path(mkdtemp(prefix="azurite-")))


def end_stand_ins() -> None:
    """End those that were started."""
    if moto.cache_info().currsize:
        moto().stop()
        moto.cache_clear()
    if azurite.cache_info().currsize:
        azurite().stop()
        shutil.rmtree(azurite().folder)
        azurite.cache_clear()


def aws(service: str, endpoint: str = "") -> Any:
    """A client of moto's own address, with any key."""
    from botocore.session import Session

    return Session().create_client(
        service,
        region_name=REGION,
        endpoint_url=endpoint or moto().endpoint,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


class MotoSubject(HttpSubject):
    """What moto serves."""

    can = frozenset({"away", "hang", "denied", "busy"})
    busy = "return 503;"
    """What nginx does in place of moto when the file `busy` is there."""
    denied = ""
    """Directives by which nginx refuses keys, where moto cannot."""

    def __init__(self, folder: Path) -> None:
        self._environment = dict(os.environ)
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(NO_KEYS)
        httpx.post(f"{moto().endpoint}/moto-api/reset").raise_for_status()
        super().__init__(folder)
        self.password = folder / "keys"
        self.write_keys(ACCESS_KEY, SECRET_KEY)

    def write_keys(self, key: str, secret: str) -> None:
        """Use these from now on."""
        assert self.password is not None
        write_secret(self.password, f"AWS_ACCESS_KEY_ID={key}\nAWS_SECRET_ACCESS_KEY={secret}\n")

    @property
    def more(self) -> str:  # type: ignore[override]
        """Directives of the server."""
        return f"""
            client_max_body_size 0;
            location / {{
                if (-f FOLDER/busy) {{ {self.busy} }}
                {self.denied}
                proxy_pass {moto().endpoint}; proxy_set_header Host $http_host; proxy_max_temp_file_size 0;
            }}
        """

    @property
    def options(self) -> str:
        """Of the URI, that name moto."""
        return f"endpoint=http://127.0.0.1:{self.port}"

    def close(self) -> None:
        super().close()
        os.environ.clear()
        os.environ.update(self._environment)


class S3Subject(MotoSubject):
    """An object of moto's S3, for a user of its IAM, whose signatures are checked."""

    can = MotoSubject.can | {"truncated"}

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        iam = aws("iam")
        iam.create_user(UserName="alice")
        iam.put_user_policy(UserName="alice", PolicyName="all", PolicyDocument=json.dumps(ACTIONS))
        key = iam.create_access_key(UserName="alice")["AccessKey"]
        iam.close()
        self._key = key["AccessKeyId"]
        self.write_keys(self._key, key["SecretAccessKey"])
        self._check_keys("0")

    def _check_keys(self, after: str) -> None:
        """How many requests go unchecked."""
        httpx.post(f"{moto().endpoint}/moto-api/reset-auth", content=after).raise_for_status()

    def spoil_credentials(self) -> None:
        self.write_keys(self._key, "wrong")

    def close(self) -> None:
        super().close()
        self._check_keys("inf")

    def serve(self, disk: Path) -> None:
        self._put(disk.read_bytes())

    def _put(self, content: bytes) -> None:
        s3 = aws("s3")
        buckets = {found["Name"] for found in s3.list_buckets()["Buckets"]}
        if "disks" not in buckets:
            s3.create_bucket(Bucket="disks", CreateBucketConfiguration={"LocationConstraint": REGION})
        s3.put_object(Bucket="disks", Key="vm/web 01.raw", Body=content)
        s3.close()

    def serve_another(self) -> None:
        self._check_keys("inf")
        super().serve_another()
        self._check_keys("0")

    def set_versioning(self) -> None:
        """Let the bucket keep versions."""
        self._check_keys("inf")
        s3 = aws("s3")
        s3.put_bucket_versioning(Bucket="disks", VersioningConfiguration={"Status": "Enabled"})
        s3.close()
        self._check_keys("0")

    def versions(self) -> list[str]:
        """Of the object, the newest first."""
        self._check_keys("inf")
        s3 = aws("s3")
        found = [version["VersionId"] for version in s3.list_object_versions(Bucket="disks")["Versions"]]
        s3.close()
        self._check_keys("0")
        return found

    @property
    def uri(self) -> str:
        return f"s3://disks/vm/web%2001.raw?region={REGION}&{self.options}"

    def missing(self) -> str:
        return self.uri.replace("web", "missing")

    def truncate(self) -> None:
        os.truncate(self.folder / "disk.raw", 3 * MIB)
        self._check_keys("inf")
        self._put(self.content)
        self._check_keys("0")


class EbsSubject(MotoSubject):
    """A snapshot of moto's EBS; "GiB" are MiB here, as volumes have no other sizes."""

    can = MotoSubject.can | {"holes", "truncated", "corrupt"}
    busy = """
        add_header x-amzn-ErrorType RequestThrottledException always;
        return 400 '{"Message": "too much", "Reason": "ACCOUNT_THROTTLED"}';
    """
    denied = """
        if ($http_authorization !~ "Credential=testing/") {
            add_header x-amzn-ErrorType UnrecognizedClientException always;
            return 403 '{"Message": "The security token included in the request is invalid."}';
        }
    """
    block = EBS_BLOCK

    def __init__(self, folder: Path) -> None:
        self._unit = ebs.UNIT
        ebs.UNIT = MIB
        super().__init__(folder)

    @property
    def content(self) -> bytes:
        return (self.folder / "disk.raw").read_bytes().ljust(11 * MIB, b"\0")

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """Those of the disk that were ever written."""
        content = self.content
        for index in range(len(content) // self.block):
            data = content[index * self.block : (index + 1) * self.block]
            if any(data):
                yield index, data

    def serve(self, disk: Path) -> None:
        assert disk == self.folder / "disk.raw"
        client = aws("ebs")
        self.snapshot = client.start_snapshot(VolumeSize=11)["SnapshotId"]
        client.close()
        self.put_blocks()

    def put_blocks(self, damage: int = 0) -> None:
        """Write all of them, each with a token of its own; `damage` is what the last byte is changed by."""
        client = aws("ebs")
        for index, data in self.blocks():
            self.put_block(client, index, data, damage)
        client.close()

    def put_block(self, client: Any, index: int, data: bytes, damage: int = 0) -> None:
        """Write a block with the checksum of `data`."""
        client.put_snapshot_block(
            SnapshotId=self.snapshot,
            BlockIndex=index,
            BlockData=data[:-1] + bytes([data[-1] ^ damage]),
            DataLength=len(data),
            Checksum=base64.b64encode(hashlib.sha256(data).digest()).decode(),
            ChecksumAlgorithm="SHA256",
        )

    @property
    def uri(self) -> str:
        return f"ebs://{REGION}/{self.snapshot}?{self.options}"

    def missing(self) -> str:
        return self.uri.replace(self.snapshot, "snap-0123456789abcdef0")

    def truncate(self) -> None:
        client = aws("ebs")
        for index, data in self.blocks():
            self.put_block(client, index, data[: len(data) // 2])
        client.close()

    def damage(self) -> None:
        self.put_blocks(damage=1)

    def spoil_credentials(self) -> None:
        self.write_keys("another", SECRET_KEY)

    def as_elsewhere(self) -> None:
        ebs.UNIT = self._unit

    def close(self) -> None:
        super().close()
        ebs.UNIT = self._unit


class AzureSubject(HttpsSubject):
    """A page blob of Azurite: a fixed VHD."""

    can = frozenset({"holes", "away", "hang", "truncated", "denied", "busy"})

    @property
    def more(self) -> str:  # type: ignore[override]
        """Directives of the server."""
        return f"""
            ssl_certificate FOLDER/server/server-cert.pem; ssl_certificate_key FOLDER/server/server-key.pem;
            location / {{
                if (-f FOLDER/busy) {{ return 503; }}
                proxy_pass http://127.0.0.1:{azurite().port}; proxy_set_header Host $http_host;
                proxy_max_temp_file_size 0;
            }}
        """

    def start(self) -> None:
        super().start()
        self.password = self.folder / "signature"
        write_secret(self.password, f"?{azurite().signature()}\n")

    def spoil_credentials(self) -> None:
        assert self.password is not None
        write_secret(self.password, f"?{azurite().signature(seconds=-60)}\n")

    def serve(self, disk: Path) -> None:
        self.put(vhd(disk.read_bytes()))

    def request(self, method: str, query: str, headers: dict[str, str], content: bytes = b"", path: str = "") -> Any:
        """Ask Azurite itself, with every right."""
        url = f"{azurite().endpoint}/{self.container}{path}?{query}&{azurite().signature('rwdlac')}"
        answer = httpx.request(method, url, headers={"x-ms-version": "2021-12-02", **headers}, content=content)
        assert answer.status_code < 300, answer.text
        return answer

    def put(self, content: bytes) -> None:
        """Make the blob, of the pages that are not zero."""
        if not hasattr(self, "container"):
            self.container = f"disks-{os.urandom(8).hex()}"
            self.request("PUT", "restype=container", {})
        made = {"x-ms-blob-type": "PageBlob", "x-ms-blob-content-length": str(len(content))}
        self.request("PUT", "timeout=30", made, path="/web01.vhd")
        for start in range(0, len(content), MIB):
            self.put_pages(start, content[start : start + MIB])

    def put_pages(self, start: int, data: bytes) -> None:
        """Write a run of pages, unless all is zero."""
        if any(data):
            headers = {"x-ms-page-write": "update", "x-ms-range": f"bytes={start}-{start + len(data) - 1}"}
            self.request("PUT", "comp=page", headers, data, path="/web01.vhd")

    @property
    def uri(self) -> str:
        return f"azure://127.0.0.1:{self.port}/{ACCOUNT}/{self.container}/web01.vhd"

    def missing(self) -> str:
        return self.uri.replace("web01", "missing")

    def truncate(self) -> None:
        os.truncate(self.folder / "disk.raw", 3 * MIB)
        self.serve(self.folder / "disk.raw")


class AzureBlockSubject(AzureSubject):
    """A block blob of Azurite: a raw image."""

    can = AzureSubject.can - {"holes"}

    def serve(self, disk: Path) -> None:
        self.put(disk.read_bytes())

    def put(self, content: bytes) -> None:
        if not hasattr(self, "container"):
            self.container = f"disks-{os.urandom(8).hex()}"
            self.request("PUT", "restype=container", {})
        self.request("PUT", "timeout=30", {"x-ms-blob-type": "BlockBlob"}, content, path="/web01.vhd")


def vhd(content: bytes, kind: int = 2) -> bytes:
    """A fixed VHD of a disk, or one that says it is of another kind."""
    footer = bytearray(b"conectix" + bytes.fromhex("00000002 00010000") + b"\xff" * 8 + bytes(24))
    footer += len(content).to_bytes(8, "big") + bytes(4) + kind.to_bytes(4, "big")
    footer[40:48] = footer[48:56]
    footer += (~sum(footer) & 0xFFFFFFFF).to_bytes(4, "big")
    return content + bytes(footer.ljust(512, b"\0"))
