"""The boot server with the real nginx, in a network namespace of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from livemount.boot.api import BootScript, RequestKind
from livemount.boot.nginx import NginxBoot
from livemount.core.machine import Firmware
from livemount.core.run import CommandError, in_namespace, run
from livemount.core.settings import HostPaths
from livemount.target.api import Chap, initiator_iqn, target_iqn

pytestmark = pytest.mark.integration

SERVER = "10.98.0.1"
FIRST, SECOND, THIRD = "10.98.0.11", "10.98.0.12", "10.98.0.13"


class Bench:
    """nginx in a namespace with three guests' addresses."""

    def __init__(self, root: Path, namespace: str) -> None:
        self.host = HostPaths(root)
        self.namespace = namespace
        self.boot = NginxBoot(self.host)
        words = [sys.executable, "-m", "livemount.boot", "--root", str(root), "--address", SERVER]
        self.nginx = subprocess.Popen([*in_namespace(namespace), *words], stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.nginx.poll() is None, self.nginx.stderr and self.nginx.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            return self.get("/up", THIRD)[0] == 204
        except CommandError:
            return False

    def get(self, path: str, address: str = FIRST, *options: str) -> tuple[int, str]:
        """Ask as a guest: status and body."""
        words = ["curl", "--silent", "--interface", address, "--path-as-is", "--write-out", "\n%{http_code}", *options]
        out = run(*words, f"http://{SERVER}{path}", namespace=self.namespace, timeout=60).stdout
        body, _, status = out.rpartition("\n")
        return int(status), body

    def stop(self) -> None:
        """End nginx."""
        self.nginx.terminate()
        self.nginx.wait(60)
        if self.nginx.stderr:
            self.nginx.stderr.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A running bench; gone without a trace afterwards."""
    namespace = f"lmb-{os.getpid()}"
    with TemporaryDirectory(prefix="lmb-") as folder:
        Path(folder).chmod(0o755)
        run("ip", "netns", "add", namespace)
        try:
            run("ip", "link", "set", "lo", "up", namespace=namespace)
            for address in (SERVER, FIRST, SECOND, THIRD):
                run("ip", "address", "add", f"{address}/32", "dev", "lo", namespace=namespace)
            made = Bench(Path(folder), namespace)
            try:
                yield made
            finally:
                made.stop()
        finally:
            run("ip", "netns", "delete", namespace)


def script(mount: str, address: str) -> BootScript:
    """The script of a mount."""
    return BootScript(
        mount=mount,
        address=address,
        portal=SERVER,
        target_iqn=target_iqn(mount),
        initiator_iqn=initiator_iqn(mount),
        chap=Chap(user=mount, secret="s" * 32),
        firmware=Firmware.BIOS,
    )


def test_each_address_gets_its_own_script(bench: Bench) -> None:
    """Two scripts, a stranger gets none, a withdrawn one is gone."""
    bench.boot.publish(script("web01", FIRST))
    bench.boot.publish(script("db01", SECOND))
    assert bench.boot.published() == [FIRST, SECOND]
    status, body = bench.get("/boot", FIRST)
    assert status == 200
    assert target_iqn("web01") in body
    assert "db01" not in body
    status, body = bench.get("/boot", SECOND)
    assert status == 200
    assert target_iqn("db01") in body
    assert bench.get("/boot", THIRD)[0] == 404
    bench.boot.withdraw(FIRST)
    bench.boot.withdraw(FIRST)
    assert bench.get("/boot", FIRST)[0] == 404
    assert bench.get("/boot", SECOND)[0] == 200
    assert bench.boot.published() == [SECOND]
    assert not list(bench.host.scripts.glob(f"{FIRST}*"))


def test_a_script_is_replaced_at_once(bench: Bench) -> None:
    """Publishing again serves the new one."""
    bench.boot.publish(script("web01", FIRST))
    bench.boot.publish(script("web02", FIRST))
    assert target_iqn("web02") in bench.get("/boot", FIRST)[1]


def test_scripts_are_readable_by_nginx_only(bench: Bench) -> None:
    """They hold the CHAP secret."""
    bench.boot.publish(script("web01", FIRST))
    assert (bench.host.scripts / f"{FIRST}.ipxe").stat().st_mode & 0o777 == 0o640
    assert bench.host.scripts.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/boot/",
        "/boot/../boot/10.98.0.11.ipxe",
        "/boot/10.98.0.11.ipxe",
        "/10.98.0.11.ipxe",
        "/../../../../etc/passwd",
        "/boot/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/boot%00",
        "/boot.ipxe",
        "/nginx.conf",
        "/up/",
    ],
)
def test_nothing_else_is_served(bench: Bench, path: str) -> None:
    """Other paths, and ways out of the folder."""
    bench.boot.publish(script("web01", SECOND))
    status, body = bench.get(path, FIRST)
    assert status in (400, 404)
    assert "root:" not in body
    assert "ipxe" not in body


def test_a_guest_cannot_ask_in_another_ones_name(bench: Bench) -> None:
    """Headers of proxies count nothing; writing methods are refused."""
    bench.boot.publish(script("web01", SECOND))
    for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Host"):
        assert bench.get("/boot", FIRST, "--header", f"{header}: {SECOND}")[0] == 404
    for method in ("POST", "PUT", "DELETE"):
        assert bench.get("/boot", SECOND, "--request", method)[0] in (403, 405)


def test_requests_are_seen(bench: Bench) -> None:
    """Who asked, for what, with which answer; hostile addresses of pages do no harm."""
    since = datetime.now(UTC) - timedelta(seconds=1)
    bench.get("/boot", FIRST)
    bench.boot.publish(script("web01", FIRST))
    bench.get('/%0a{"time":"2026-01-01T00:00:00+00:00","address":"10.98.0.11","uri":"/up","status":204}', SECOND)
    bench.get("/" + "%22" * 2000, SECOND)
    bench.get("/boot", FIRST)
    bench.get("/up", FIRST)
    # nginx writes a request down after it has answered it.
    deadline = time.monotonic() + 60
    while len(bench.boot.requests(FIRST, since)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    seen = [(request.kind, request.status) for request in bench.boot.requests(FIRST, since)]
    assert seen == [(RequestKind.SCRIPT, 404), (RequestKind.SCRIPT, 200), (RequestKind.UP, 204)]
    assert bench.boot.requests(FIRST, datetime.now(UTC) + timedelta(seconds=5)) == []


def test_the_server_does_not_tell_its_version(bench: Bench) -> None:
    """And a flood is limited for that address only."""
    assert "nginx/" not in bench.get("/", FIRST, "--include")[1]
    bench.boot.publish(script("web01", FIRST))
    bench.boot.publish(script("db01", SECOND))
    url = f"http://{SERVER}/boot?[1-100]"
    words = ["curl", "--silent", "--interface", FIRST, "--write-out", "\n%{http_code}\n", url]
    assert "429" in run(*words, namespace=bench.namespace).stdout.split()
    assert bench.get("/boot", SECOND)[0] == 200


def test_a_folder_the_worker_cannot_enter_is_told() -> None:
    """Instead of answering 403 to every guest."""
    with TemporaryDirectory(prefix="lmb-") as folder:
        root = Path(folder) / "host"
        words = [sys.executable, "-m", "livemount.boot", "--root", str(root), "--address", "127.0.0.1"]
        done = run(*words, check=False)
        assert done.returncode == 7
        assert "cannot enter" in done.stderr


def test_an_address_in_use_is_told(bench: Bench) -> None:
    """A second boot server on the same address ends with a message."""
    with TemporaryDirectory(prefix="lmb-") as folder:
        Path(folder).chmod(0o755)
        words = [sys.executable, "-m", "livemount.boot", "--root", folder, "--address", SERVER]
        done = run(*words, check=False, namespace=bench.namespace)
        assert done.returncode == 4
        assert "in use" in done.stderr
