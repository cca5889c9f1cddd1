"""Folders of mounts planned and applied by the command line, on a stand-in cloud; a webhook that is told of ends."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from livemount.cli.main import app
from livemount.core.errors import ConflictError, ExitCode, LivemountError, NotFoundError, UsageError
from livemount.core.secrets import write_secret
from livemount.manager.client import MountFailedError
from livemount.media.certificates import Authority
from livemount.workflow.states import MountState
from tests.support.stand_in_cloud import PATIENCE, StandIn, an_order, stand_in

KEY = base64.b64encode(bytes(range(24))).decode()


class Receiver(ThreadingHTTPServer):
    """A webhook's other end: keeps what it was sent, refuses the first notice of each id."""

    daemon_threads = True

    def __init__(self, certificates: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken: list[dict[str, Any]] = []
        self.seen: set[str] = set()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server-cert.pem", certificates / "server-key.pem")
        self.socket = context.wrap_socket(self.socket, server_side=True)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Receiver)
        body = self.rfile.read(int(self.headers["content-length"]))
        id, stamp = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        digest = hmac.new(base64.b64decode(KEY), f"{id}.{stamp}.".encode() + body, hashlib.sha256).digest()
        good = self.headers["webhook-signature"] == f"v1,{base64.b64encode(digest).decode()}"
        again = id in server.seen
        server.seen.add(id)
        if good and again:
            server.taken.append(json.loads(body))
        self.send_response(204 if good and again else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


@dataclass
class World:
    """The service, a folder of mounts, a source that they can be made of, and a webhook."""

    service: StandIn
    folder: Path
    source: str
    receiver: Receiver

    def run(self, *words: str, code: int = 0) -> str:
        """Run a command of ours; returns what it printed."""
        result = CliRunner().invoke(app, [*words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    def write(self, name: str, *more: str, ttl: str = "1h") -> Path:
        """Write a mount's file."""
        file = self.folder / f"{name}.yaml"
        lines = [f"name: {name}", f"sources: ['{self.source}']", f"ttl: {ttl}", *more]
        file.write_text("\n".join(lines) + "\n")
        return file

    def steps(self, *words: str) -> dict[str, str]:
        """What a plan of the folder says."""
        said = json.loads(self.run("plan", str(self.folder), "--output", "json", *words))
        assert said["version"] == 1
        return {step["mount"]: step["action"] for step in said["steps"]}


@contextmanager
def receiving(folder: Path) -> Iterator[Receiver]:
    receiver = Receiver(Authority(folder).server("hook", ["localhost"]).folder)
    thread = threading.Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        thread.join()
        receiver.server_close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, Receiver, Path]]:
    folder = tmp_path_factory.mktemp("g")
    authority = folder / "certificates" / "ca" / "ca-cert.pem"
    with (
        receiving(folder / "certificates") as receiver,
        stand_in(SSL_CERT_FILE=str(authority)) as service,
        pytest.MonkeyPatch.context() as patch,
    ):
        secret = folder / "secret"
        write_secret(secret, f"whsec_{KEY}")
        (service.settings.home / "webhook.yaml").write_text(
            f"url: https://localhost:{receiver.server_port}/hook\nsecret-file: {secret}\nwarn-before: 1m\n"
        )
        patch.setenv("SSL_CERT_FILE", str(authority))
        patch.setenv("LIVEMOUNT_HOME", str(service.settings.home))
        patch.setenv("LIVEMOUNT_ENVIRONMENT", service.settings.environment)
        patch.setenv("SUDO_USER", "alice")
        yield service, receiver, folder


@pytest.fixture
def world(running: tuple[StandIn, Receiver, Path], tmp_path: Path) -> World:
    service, receiver, _ = running
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(1 << 20))
    folder = tmp_path / "mounts"
    folder.mkdir()
    return World(service, folder, f"file://{disk}", receiver)


def test_a_folder_is_applied_once_changed_and_pruned(world: World) -> None:
    folder = str(world.folder)
    names = "--set", "first"
    one, two = world.write("one"), world.write("two", "description: a test")
    assert world.steps(*names) == {"one": "mount", "two": "mount"}
    assert "2 to mount" in world.run("plan", folder, *names, "--detailed-exitcode", code=2)
    said = json.loads(world.run("apply", folder, *names, "--output", "json"))
    assert {name: mount["state"] for name, mount in said["mounts"].items()} == {"one": "running", "two": "running"}
    assert "nothing to do" in world.run("plan", folder, *names, "--detailed-exitcode")
    # Applied again: nothing is done.
    before = world.service.cloud.journal()
    assert json.loads(world.run("apply", folder, *names, "--output", "json"))["changes"] == 0
    assert world.service.cloud.journal() == before
    # A longer lease is the same mount, anything else another one.
    world.write("one", ttl="3h")
    world.write("two", "description: a test", "prepare: false")
    assert world.steps(*names) == {"one": "change", "two": "replace"}
    text = world.run("plan", folder, *names, "--output", "markdown")
    assert "- `ttl`: `1h` → `3h`" in text
    world.run("apply", folder, *names)
    assert world.service.cloud.journal("one") == ["made"]
    assert world.service.cloud.journal("two") == ["made", "gone", "made"]
    shown = json.loads(world.run("show", "one", "--output", "json"))
    left = datetime.fromisoformat(shown["order"]["expires"]) - datetime.now(UTC)
    assert timedelta(hours=2, minutes=50) < left < timedelta(hours=3)
    assert shown["order"]["owner"] == "alice"
    # Suspended it ends, and comes again; a file that goes ends its mount by a prune alone.
    world.write("one", "suspend: true", ttl="3h")
    two.unlink()
    assert world.steps(*names) == {"one": "end", "two": "nothing"}
    assert world.steps(*names, "--prune") == {"one": "end", "two": "end"}
    world.run("apply", folder, *names, "--prune")
    assert list(world.service.cloud.here.iterdir()) == []
    assert "suspended" in world.run("show", "one")
    world.write("one", ttl="3h")
    assert world.steps(*names) == {"one": "mount"}
    world.run("apply", folder, *names)
    one.unlink()
    with pytest.raises(UsageError, match="no files of mounts"):
        world.run("apply", folder, *names, "--prune")
    world.run("apply", folder, *names, "--prune", "--allow-empty")
    assert list(world.service.cloud.here.iterdir()) == []


def test_nothing_is_changed_unless_all_can_be(world: World) -> None:
    folder = str(world.folder)
    before = world.service.cloud.journal()
    world.write("good")
    bad = world.write("bad", "fire: 1")
    with pytest.raises(UsageError, match=r"bad\.yaml, line 4: fire: there is no such field"):
        world.run("apply", folder)
    bad.write_text("name: bad\nsources: ['file:///nowhere.raw']\nttl: 1h\n")
    with pytest.raises(NotFoundError, match=r"nowhere\.raw"):
        world.run("apply", folder)
    with pytest.raises(LivemountError) as raised:
        world.run("plan", folder, "--detailed-exitcode")
    assert raised.value.exit_code is ExitCode.FAILURE
    bad.unlink()
    manager = world.service.manager()
    manager.request(an_order("good"))
    with pytest.raises(ConflictError, match="good: there is a mount of this name: it was asked for by hand"):
        world.run("apply", folder)
    manager.stop("good", "enough")
    manager.wait_until("good", lambda _: False, PATIENCE)
    manager.close()
    assert world.service.cloud.journal()[len(before) :] == ["made", "gone"]


def test_what_expired_stays_ended_and_what_drifted_is_told(world: World) -> None:
    folder = str(world.folder)
    names = "--set", "third"
    world.write("hand")
    world.write("brief")
    world.write("broken")
    with pytest.raises(MountFailedError, match="broken: the stand-in cloud makes no such thing"):
        world.run("apply", folder, *names)
    manager = world.service.manager()
    manager.change("brief", datetime.now(UTC) + timedelta(seconds=1), "shortened by a test")
    world.run("unmount", "hand")
    assert manager.wait_until("brief", lambda _: False, PATIENCE).state is MountState.ENDED
    manager.close()
    assert world.steps(*names) == {"hand": "mount", "brief": "nothing", "broken": "mount"}
    drifted = json.loads(world.run("drift", *names, "--output", "json"))["drift"]
    assert {each["mount"]: each["problem"] for each in drifted} == {
        "hand": "it was ended by hand",
        "broken": "it failed",
    }
    assert "it was ended by hand" in world.run("drift", *names, "--detailed-exitcode", "--output", "markdown", code=2)
    (world.folder / "broken.yaml").unlink()
    world.run("apply", folder, *names)
    # What comes back has the rest of its lease, no new one.
    shown = [json.loads(world.run("show", "hand", "--output", "json"))["order"] for _ in range(2)]
    assert shown[0]["expires"] == shown[0]["declared"]["expires"]
    world.write("brief", "description: again")
    assert world.steps(*names) == {"hand": "nothing", "brief": "mount"}
    world.run("unmount", "hand")


def test_extended_by_hand_warned_of_and_told_by_a_webhook(world: World) -> None:
    manager = world.service.manager()
    manager.request(an_order("told", ttl=timedelta(hours=1)))
    manager.wait_until("told", lambda record: record.state is MountState.RUNNING, PATIENCE)
    assert "told ends" in world.run("extend", "told", "--by", "1h")
    with pytest.raises(UsageError, match="--by or --until"):
        world.run("extend", "told")
    # Within the minute before its end it is warned of, once.
    manager.change("told", datetime.now(UTC) + timedelta(seconds=61), "shortened by a test")
    told = manager.wait_until("told", lambda record: "expiring" in str(record.notes), PATIENCE)
    assert [note.text for note in told.notes][-1] == "the webhook was told: expiring"
    assert told.notes[0].text.startswith("extended by alice: ends ")
    manager.stop("told", "enough")
    manager.wait_until("told", lambda _: False, PATIENCE)
    manager.close()

    def kinds() -> list[str]:
        return [notice["kind"] for notice in world.receiver.taken if notice["mount"] == "told"]

    world.service.wait_for(lambda: "ended" in kinds(), "the notice of the end")
    assert kinds() == ["expiring", "ended"]
    (notice,) = [each for each in world.receiver.taken if each["mount"] == "told" and each["kind"] == "ended"]
    assert notice["reason"].startswith("enough")
    assert KEY not in world.service.log()


def test_limits_are_shown_and_changed(world: World) -> None:
    assert json.loads(world.run("limits", "--user", "3", "--output", "json")) == {
        "version": 1, "host": 32, "user": 3, "waiting": 0,
    }  # fmt: skip
    assert "user: 3" in world.run("limits")
    world.run("limits", "--user", "16")
