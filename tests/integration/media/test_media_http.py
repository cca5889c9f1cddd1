"""Objects of web servers: which servers will do, versions, redirects, and where credentials go."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

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
from livemount.media import open_source
from livemount.media.sources import http
from tests.support.foreign import MIB, PASSWORD, HttpsSubject, HttpSubject, age, write_disk

pytestmark = pytest.mark.integration


class Odd(HttpSubject):
    """A server with odd places."""

    more = """
        location /whole/ { alias FOLDER/; max_ranges 0; }
        location /nameless/ { alias FOLDER/; etag off; add_header Last-Modified ""; }
        location /dated/ { alias FOLDER/; etag off; }
        location /moved/ { rewrite ^/moved/(.*)$ /disk.raw redirect; }
        location /circle/ { return 302 /circle/; }
        location /file/ { return 302 file:///etc/shadow; }
        location /busy/ { return 503; }
        location /secret/ { return 403; }
        location /gone/ { return 410; }
        location /teapot/ { return 418; }
    """


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Odd]:
    subject = Odd(tmp_path)
    yield subject
    subject.close_all()


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("whole/disk.raw", UnsupportedError),
        ("nameless/disk.raw", UnsupportedError),
        ("circle/", UnsupportedError),
        ("file/", UnsupportedError),
        ("busy/", UnavailableError),
        ("secret/", DeniedError),
        ("gone/", NotFoundError),
        ("teapot/", UnsupportedError),
        ("empty.raw", UnsupportedError),
        ("odd.raw", UnsupportedError),
    ],
)
def test_what_is_no_source(odd: Odd, place: str, error: type[LivemountError]) -> None:
    (odd.folder / "empty.raw").touch()
    (odd.folder / "odd.raw").write_bytes(b"x" * 513)
    age(odd.folder / "odd.raw", 100)
    with pytest.raises(error):
        open_source(f"http://127.0.0.1:{odd.port}/{place}", None)


@pytest.mark.parametrize("place", ["dated/disk.raw", "moved/x"])
def test_servers_that_will_do(odd: Odd, place: str) -> None:
    source = open_source(f"http://127.0.0.1:{odd.port}/{place}", None)
    content = odd.content
    assert source.read(0, source.size) == content
    write_disk(odd.folder / "disk.raw", seed=5)
    age(odd.folder / "disk.raw", 100)
    with pytest.raises(CorruptError, match="was changed"):
        source.read(0, MIB)
    source.close()


def test_what_was_changed_only_now_is_no_version_yet(odd: Odd) -> None:
    os.utime(odd.folder / "disk.raw")
    with pytest.raises(UnavailableError, match="changed only now"):
        odd.open()


def test_an_authority_that_is_unknown_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = HttpsSubject(tmp_path)
    try:
        subject.open().read(0, 512)
        monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
        with pytest.raises(DeniedError, match="cannot be trusted"):
            open_source(subject.uri, subject.password)
    finally:
        monkeypatch.undo()
        subject.close_all()


class Redirecting(HttpsSubject):
    """Sends to another server, and to one without TLS."""

    target = 0

    def start(self) -> None:
        self.more = f"""{HttpsSubject.more}
            location /away/ {{ return 307 https://localhost:{self.target}/; }}
            location /clear/ {{ return 307 http://localhost:{self.target}/; }}
        """
        super().start()


class Listener(BaseHTTPRequestHandler):
    """Keeps what it is asked, and gives 512 bytes, fewer than it says, or bytes of another place."""

    asked: list[tuple[str, str | None]]
    ranges = "bytes 0-0/512"
    length = 1

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(206)
        self.send_header("Content-Range", self.ranges)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(self.length))
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[tuple[int, type[Listener]]]:
    kind = type("Kept", (Listener,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, kind
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("ranges", "length", "error"),
    [
        ("bytes 0-0/512", 2, UnavailableError),  # cut off
        ("bytes 1-1/512", 1, CorruptError),
        ("bytes 0-0/*", 1, UnsupportedError),
        ("none", 1, UnsupportedError),
        ("bytes 0-0/99999999999999999999", 1, UnsupportedError),
    ],
)
def test_servers_that_lie(
    listener: tuple[int, type[Listener]], ranges: str, length: int, error: type[LivemountError]
) -> None:
    port, kind = listener
    kind.ranges, kind.length = ranges, length
    with pytest.raises(error):
        open_source(f"http://127.0.0.1:{port}/", None)


def test_credentials_go_to_their_server_only(
    tmp_path: Path, listener: tuple[int, type[Listener]], caplog: pytest.LogCaptureFixture
) -> None:
    port, kind = listener
    (tmp_path / "d").mkdir()
    Redirecting.target = port
    subject = Redirecting(tmp_path / "d")
    try:
        assert subject.password is not None
        write_secret(subject.password, f"alice:{PASSWORD}\n?signature=hush%2Fhush&x=1\n")
        with caplog.at_level(logging.DEBUG):
            source = open_source(subject.uri + "?version=1", subject.password)
            assert source.read(0, MIB) == subject.content[:MIB]
        log = (subject.folder / "access.log").read_text()
        assert "GET /disk.raw?version=1&signature=hush%2Fhush&x=1 " in log
        assert "hush" not in caplog.text + source.identity
        source.close()
        base = subject.uri.removesuffix("disk.raw")
        with pytest.raises(DeniedError, match="from https to http"):
            open_source(f"{base}clear/", subject.password)
        # The server there has no TLS: asked it is, and told nothing.
        with pytest.raises(UnavailableError):
            open_source(f"{base}away/", subject.password)
        assert kind.asked == []
    finally:
        subject.close_all()


def test_another_origin_gets_no_credentials(
    listener: tuple[int, type[Listener]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    port, kind = listener

    class Sends(HttpSubject):
        more = f"location /away/ {{ return 307 http://127.0.0.1:{port}/there?y=2; }}"

    subject = Sends(tmp_path)
    try:
        # As if there were TLS: who refuses a password in the clear is `open`.
        client = http.httpx_client()
        url = http.parse_url(f"http://127.0.0.1:{subject.port}/away/")
        source = http.HttpObject(url, http.Credentials("Bearer hush", "signature=hush"), client)
        assert source.size == 512
        assert kind.asked == [("/there?y=2", None)]
        source.close()
    finally:
        subject.close_all()


@pytest.mark.parametrize(
    "text",
    ["http://", "http:///disk.raw", "https://alice:hunter2@host/disk.raw", "https://host/a#b", "https://host:99999/"],
)
def test_malformed_urls_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        open_source(text, None)
    assert "hunter2" not in str(raised.value)


def test_passwords_do_not_go_in_the_clear(tmp_path: Path) -> None:
    write_secret(tmp_path / "password", "alice:secret")
    with pytest.raises(UsageError, match="in the clear"):
        open_source("http://127.0.0.1:1/disk.raw", tmp_path / "password")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("alice:pass:word", http.Credentials("Basic YWxpY2U6cGFzczp3b3Jk")),
        ("Authorization: Bearer abc", http.Credentials("Bearer abc")),
        ("?a=b", http.Credentials(query="a=b")),
        ("?a=b\nalice:x", http.Credentials("Basic YWxpY2U6eA==", "a=b")),
        ("", None),
        ("nothing", None),
        ("a:b\nc:d", None),
        ("a:b\x01", None),
    ],
)
def test_credentials_in_a_file(tmp_path: Path, text: str, found: http.Credentials | None) -> None:
    write_secret(tmp_path / "password", text)
    if found is None:
        with pytest.raises(DeniedError, match="holds no credentials"):
            http.Credentials.read(tmp_path / "password")
    else:
        assert http.Credentials.read(tmp_path / "password") == found
