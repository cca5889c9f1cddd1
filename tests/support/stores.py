"""One repository of each kind of store, with its server behind a proxy; moto and Azurite stand in for S3 and Azure.

Servers are shared by a module's tests; each subject is a place of its own in them, names of files are relative to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from livemount.core.secrets import write_secret
from tests.support import moto_stand_in
from tests.support.azurite_stand_in import ACCOUNT, KEY, AzuriteStandIn
from tests.support.moto_stand_in import MotoStandIn
from tests.support.rest_server import PASSWORD, USER, RestServer
from tests.support.sshd import Sshd
from tests.support.tcp_proxy import TcpProxy

KINDS = ("local", "s3", "azure", "rest", "sftp")
ELSEWHERE = KINDS[1:]
SECRET = "correct horse"
_numbers = itertools.count()


@dataclass
class Files:
    """The files of a repository, behind our back."""

    names: Callable[[str], list[str]]
    """Those whose names begin so."""
    get: Callable[[str], bytes]
    put: Callable[[str, bytes], object]
    delete: Callable[[str], object]

    def largest_pack(self) -> str:
        """Its name."""
        return max(self.names("data/"), key=lambda name: len(self.get(name)))


@dataclass
class Subject:
    """A place for a repository."""

    kind: str
    place: Path | str
    password: Path
    files: Files
    keys: dict[str, str] = field(default_factory=dict)
    """What opens the store."""
    wrong_keys: dict[str, str] = field(default_factory=dict)
    proxy: TcpProxy | None = None
    restic: tuple[str, dict[str, str]] | None = None
    """How restic calls it, with environment variables, where it can reach it."""

    def __post_init__(self) -> None:
        self.open_with(self.keys)

    def open_with(self, keys: dict[str, str], secret: str = SECRET) -> None:
        """Write the password file."""
        write_secret(self.password, "\n".join([secret, *(f"{name}={value}" for name, value in keys.items())]))


class Servers:
    """The servers of one kind of store."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._kind = kind
        self._folder = folder
        self._stack = ExitStack()
        folder.mkdir(parents=True, exist_ok=True)
        self._make: Callable[[str, Path], Subject] = getattr(self, f"_start_{kind}")()

    def subject(self, folder: Path) -> Subject:
        """A new, empty place. `folder` is for the password."""
        return self._make(f"site-{next(_numbers)}", folder / "password")

    def stop(self) -> None:
        """End them."""
        self._stack.close()

    def _proxy(self, port: int) -> TcpProxy:
        proxy = TcpProxy(port)
        self._stack.callback(proxy.close)
        return proxy

    def _start_local(self) -> Callable[[str, Path], Subject]:
        def made(name: str, password: Path) -> Subject:
            return Subject("local", self._folder / name, password, in_folder(self._folder / name))

        return made

    def _start_rest(self) -> Callable[[str, Path], Subject]:
        server = RestServer(self._folder)
        self._stack.callback(server.stop)
        proxy = self._proxy(server.port)

        def made(name: str, password: Path) -> Subject:
            keys = {"RESTIC_REST_USERNAME": USER, "RESTIC_REST_PASSWORD": PASSWORD}
            return Subject(
                "rest",
                f"restic+rest://127.0.0.1:{proxy.port}/{name}",
                password,
                in_folder(self._folder / name),
                keys,
                keys | {"RESTIC_REST_PASSWORD": "wrong-secret"},
                proxy,
                (f"rest:http://{USER}:{PASSWORD}@127.0.0.1:{server.port}/{name}", {}),
            )

        return made

    def _start_sftp(self) -> Callable[[str, Path], Subject]:
        server = Sshd(self._folder / "sshd")
        self._stack.callback(server.stop)
        proxy = self._proxy(server.port)
        server.knows(proxy.port)

        def made(name: str, password: Path) -> Subject:
            root = self._folder / name
            keys = {"SFTP_USER": "root", "SFTP_IDENTITY": str(server.user_key)}
            keys |= {"SFTP_KNOWN_HOSTS": str(server.known_hosts)}
            return Subject(
                "sftp",
                f"restic+sftp://127.0.0.1:{proxy.port}{root}",
                password,
                in_folder(root),
                keys,
                keys | {"SFTP_IDENTITY": str(server.stranger_key)},
                proxy,
                (str(root), {}),
            )

        return made

    def _start_s3(self) -> Callable[[str, Path], Subject]:
        from botocore.session import Session

        server = MotoStandIn()
        self._stack.callback(server.stop)
        proxy = self._proxy(server.port)
        region = moto_stand_in.REGION
        client: Any = Session().create_client(
            "s3",
            region_name=region,
            endpoint_url=server.endpoint,
            aws_access_key_id=moto_stand_in.ACCESS_KEY,
            aws_secret_access_key=moto_stand_in.SECRET_KEY,
        )
        self._stack.callback(client.close)
        client.create_bucket(Bucket="vault", CreateBucketConfiguration={"LocationConstraint": region})

        def named(root: str, start: str) -> list[str]:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket="vault", Prefix=f"{root}/{start}")
            return [each["Key"].removeprefix(f"{root}/") for page in pages for each in page.get("Contents", [])]

        def made(name: str, password: Path) -> Subject:
            keys = {"AWS_ACCESS_KEY_ID": moto_stand_in.ACCESS_KEY, "AWS_REGION": region}
            keys |= {"AWS_SECRET_ACCESS_KEY": moto_stand_in.SECRET_KEY}
            files = Files(
                names=partial(named, name),
                get=lambda file: client.get_object(Bucket="vault", Key=f"{name}/{file}")["Body"].read(),
                put=lambda file, data: client.put_object(Bucket="vault", Key=f"{name}/{file}", Body=data),
                delete=lambda file: client.delete_object(Bucket="vault", Key=f"{name}/{file}"),
            )
            place = f"restic+s3://127.0.0.1:{proxy.port}/vault/{name}"
            # moto takes any key: there is no wrong one but none.
            reached = f"s3:{server.endpoint}/vault/{name}", {**keys, "AWS_DEFAULT_REGION": region}
            return Subject("s3", place, password, files, keys, {}, proxy, reached)

        return made

    def _start_azure(self) -> Callable[[str, Path], Subject]:
        server = AzuriteStandIn(self._folder / "azurite")
        self._stack.callback(server.stop)
        proxy = self._proxy(server.port)
        client = httpx.Client(headers={"x-ms-version": "2021-12-02"}, trust_env=False)
        self._stack.callback(client.close)
        signature = server.signature("rwdlac")

        def ask(method: str, path: str, data: bytes = b"") -> bytes:
            joint = "&" if "?" in path else "?"
            url = f"{server.endpoint}/vault{path}{joint}{signature}"
            answer = client.request(method, url, content=data, headers={"x-ms-blob-type": "BlockBlob"})
            assert answer.is_success, answer.text
            return answer.content

        ask("PUT", "?restype=container")

        def named(root: str, start: str) -> list[str]:
            text = ask("GET", f"?restype=container&comp=list&prefix={root}/{start}").decode()
            return [part.partition("</Name>")[0].removeprefix(f"{root}/") for part in text.split("<Name>")[1:]]

        def made(name: str, password: Path) -> Subject:
            files = Files(
                names=partial(named, name),
                get=lambda file: ask("GET", f"/{name}/{file}"),
                put=lambda file, data: ask("PUT", f"/{name}/{file}", data),
                delete=lambda file: ask("DELETE", f"/{name}/{file}"),
            )
            place = f"restic+azure://127.0.0.1:{proxy.port}/{ACCOUNT}/vault/{name}"
            wrong = {"AZURE_ACCOUNT_KEY": "d3Jvbmctc2VjcmV0"}
            return Subject("azure", place, password, files, {"AZURE_ACCOUNT_KEY": KEY}, wrong, proxy)

        return made


def in_folder(root: Path) -> Files:
    """The files of a repository in a folder."""

    def put(name: str, data: bytes) -> None:
        (root / name).unlink(missing_ok=True)
        (root / name).write_bytes(data)

    return Files(
        names=lambda start: [str(path.relative_to(root)) for path in (root / start).rglob("*") if path.is_file()],
        get=lambda name: (root / name).read_bytes(),
        put=put,
        delete=lambda name: (root / name).unlink(),
    )
