"""URIs name sources; a raw image is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from livemount.core.errors import (
    CorruptError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.media import Extent, open_source
from livemount.media.registry import SourceUri, schemes

BLOCK = 64 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a disk? 100% #1.raw"
    with path.open("wb") as file:
        file.truncate(16 * BLOCK)
        file.seek(4 * BLOCK)
        file.write(b"x" * BLOCK)
    return path


def uri(path: Path) -> str:
    return str(SourceUri("file", path, {}))


def test_the_scheme_names_the_module() -> None:
    assert {"file", "restic", "nbd", "nbds", "nbd+unix"} <= set(schemes())
    with pytest.raises(UnsupportedError, match=r"known are .*file, .*restic"):
        open_source("floppy:///dev/fd0", None)


@pytest.mark.parametrize(
    ("path", "options"),
    [("/a", {}), ("/a b/ü?#%&=+", {"file": "/web01/disk0.raw", "snapshot": "a&b=c%41+ ?#"}), ("/x;y", {"a": ""})],
)
def test_uris_keep_what_they_are_made_of(path: str, options: dict[str, str]) -> None:
    made = SourceUri("restic", Path(path), options)
    assert SourceUri.parse(str(made)) == made


@pytest.mark.parametrize(("host", "port"), [("10.0.0.5", None), ("nbd.example", 10809), ("fe80::1", 1), ("h", 65535)])
def test_uris_of_hosts_keep_them(host: str, port: int | None) -> None:
    made = SourceUri("nbd", Path("/a b"), {"identity": "1"}, host, port)
    assert SourceUri.parse(str(made), host=True) == made


@pytest.mark.parametrize(
    "text",
    [
        "nbd:///web01?identity=1",
        "nbd://:10809/web01?identity=1",
        "nbd://host:0/web01?identity=1",
        "nbd://host:port/web01?identity=1",
        "nbd://host:70000/web01?identity=1",
        "nbd://alice:hunter2@host/web01?identity=1",
        "nbd://ho%20st/web01?identity=1",
        "nbd://-host/web01?identity=1",
        "nbd://host/web01",
        "nbd://host/web01?identity=",
        "nbd://host/web01?identity=1&certificates=/etc",
        "nbd://host?identity=1",
        "nbd+unix://host/web01?socket=/s&identity=1",
        "nbd+unix:///web01?socket=s&identity=1",
        "nbd+unix:///web01?identity=1",
        "nbds://host/?identity=1&certificates=etc",
        "",
        "/images/a.raw",
        "file:a.raw",
        "file://host/a.raw",
        "file:///a/../b",
        "file:///a/%2e%2e/b",
        "file:///a%00b",
        "file:///%ff",
        "file:///a#b",
        "file:///a?x=1&x=2",
        "file:///a?novalue",
        "file:///a?x=1",
        "restic:///a?snapshot=1",
        "restic:///a?snapshot=1&file=2&more=3",
    ],
)
def test_malformed_uris_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_source(text, None)
    assert "hunter2" not in str(raised.value)


def test_a_raw_image_is_read_with_its_holes(image: Path) -> None:
    source = open_source(uri(image), None)
    assert source.size == 16 * BLOCK
    assert source.read(4 * BLOCK - 10, 20) == bytes(10) + b"x" * 10
    assert source.read(0, 0) == b""
    assert list(source.extents(BLOCK, 15 * BLOCK)) == [
        Extent(BLOCK, 3 * BLOCK, hole=True),
        Extent(4 * BLOCK, BLOCK, hole=False),
        Extent(5 * BLOCK, 11 * BLOCK, hole=True),
    ]
    assert list(source.extents(4 * BLOCK + 7, 5)) == [Extent(4 * BLOCK + 7, 5, hole=False)]
    for offset, length in ((-1, 1), (0, -1), (16 * BLOCK, 1)):
        with pytest.raises(UsageError):
            source.read(offset, length)
    source.close()
    source.close()
    with pytest.raises(UnavailableError):
        source.read(0, 1)


def test_the_identity_is_the_files(image: Path) -> None:
    first = open_source(uri(image), None)
    assert open_source(uri(image), None).identity == first.identity
    link = image.with_name("link.raw")
    link.symlink_to(image)
    assert open_source(uri(link), None).identity == first.identity
    with image.open("r+b") as file:
        file.write(b"new")
    assert open_source(uri(image), None).identity != first.identity
    with pytest.raises(CorruptError, match="was changed"):
        first.read(0, 512)


@pytest.mark.parametrize(
    ("size", "error"), [(None, NotFoundError), (0, UnsupportedError), (513, UnsupportedError), (-1, UsageError)]
)
def test_what_is_no_raw_image_is_refused(tmp_path: Path, size: int | None, error: type[LivemountError]) -> None:
    path = tmp_path / "x"
    if size == -1:
        path.mkdir()
    elif size is not None:
        path.touch()
        os.truncate(path, size)
    with pytest.raises(error, match=str(path)):
        open_source(uri(path), None)


def test_a_raw_image_has_no_password(image: Path) -> None:
    with pytest.raises(UsageError, match="no password"):
        open_source(uri(image), image)
