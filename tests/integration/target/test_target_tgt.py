"""The tgt back end against a real tgtd in a network namespace of its own."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from livemount.core.errors import NotFoundError, UnavailableError, UnsupportedError, UsageError
from livemount.core.run import in_namespace, run
from livemount.core.secrets import new_secret
from livemount.target.api import Chap, Session, TargetSpec, initiator_iqn, target_iqn
from livemount.target.command import control_socket
from livemount.target.protocol import Mode, Operation, request
from livemount.target.tgt import TgtTarget
from tests.integration.target.conftest import GUEST, OTHER, PORTAL, Bench

pytestmark = pytest.mark.integration


def wait_for(what: Callable[[], bool]) -> None:
    """Wait until `what` holds; fails after 30 s."""
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def hold_session(bench: Bench, spec: TargetSpec) -> subprocess.Popen[str]:
    """A client that stays logged in and reads all the time."""
    words = ["iscsi-perf", "-i", initiator_iqn(spec.mount), bench.url(spec)]
    bench.client("true", spec=spec)
    client = subprocess.Popen(
        [*in_namespace(bench.namespace), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    wait_for(lambda: bool(bench.target().sessions(spec.mount)))
    return client


def test_only_the_mounts_guest_gets_in(bench: Bench) -> None:
    """Right secret and name; wrong secret; no secret; another initiator name; another mount's account."""
    target = bench.target()
    web, db = bench.spec("web01"), bench.spec("db01", OTHER)
    target.create(web)
    target.create(db)
    assert target.mounts() == ["db01", "web01"]
    assert "Total size:8388608" in bench.read_capacity(web).stdout
    assert "Total size:8388608" in bench.read_capacity(db, address=OTHER).stdout
    assert "Authentication failure" in bench.read_capacity(web, secret=new_secret()).stderr
    assert "Target not found" in bench.read_capacity(web, initiator=initiator_iqn("db01")).stderr
    assert "Target not found" in bench.read_capacity(db, initiator="iqn.2005-03.org.open-iscsi:x").stderr
    ask = ("iscsi-readcapacity16", "--initiator-name", "INITIATOR")
    no_account = f"iscsi://{PORTAL}:3260/{target_iqn('web01')}/1"
    assert bench.client(*ask, no_account, spec=web).returncode != 0
    foreign = f"iscsi://db01%{db.chap.secret}@{PORTAL}:3260/{target_iqn('web01')}/1"
    assert "Authentication failure" in bench.client(*ask, foreign, spec=web).stderr


def test_a_guest_sees_its_own_target_only(bench: Bench) -> None:
    """Discovery does not tell of other mounts."""
    target = bench.target()
    web, db = bench.spec("web01"), bench.spec("db01", OTHER)
    target.create(web)
    target.create(db)
    listing = bench.client("iscsi-ls", "--initiator-name", "INITIATOR", f"iscsi://{PORTAL}", spec=web).stdout
    assert target_iqn("web01") in listing
    assert "db01" not in listing


def test_writes_reach_the_file_and_unmap_punches_holes(bench: Bench) -> None:
    """What the guest writes is in the backing file, what it discards is gone from it."""
    spec = bench.spec("web01")
    bench.target().create(spec)
    done = bench.qemu_io(spec, "write -P 65 0 1M", "write -f -P 66 1M 4k", "flush")
    assert done.returncode == 0, done.stderr
    data = spec.backing_file.read_bytes()
    assert data[: 1 << 20] == b"A" * (1 << 20)
    assert data[1 << 20 : (1 << 20) + 4096] == b"B" * 4096
    before = spec.backing_file.stat().st_blocks
    assert bench.qemu_io(spec, "discard 0 512k", "flush").returncode == 0
    assert spec.backing_file.stat().st_blocks <= before - 1024
    assert spec.backing_file.read_bytes()[: 1 << 19] == bytes(1 << 19)


def test_flush_and_fua_reach_the_file_system(bench: Bench) -> None:
    """tgtd calls fdatasync for SYNCHRONIZE CACHE and for a write with FUA, and not for a plain write."""
    spec = bench.spec("web01")
    bench.target().create(spec)
    assert bench.tgtd is not None
    trace = bench.host.root / "trace"
    words = ["strace", "-f", "-e", "trace=fdatasync,pwrite64", "-o", str(trace), "-p", str(bench.tgtd.pid)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        while "attached" not in strace.stderr.readline():
            assert strace.poll() is None
        plain, fua = "write -P 1 0 4k", "write -f -P 2 0 4k"
        done = bench.qemu_io(spec, plain, fua, plain, "flush", plain)
        strace.terminate()
        strace.stderr.read()
    assert done.returncode == 0, done.stderr
    calls = [call[0] for call in re.findall(r"(pwrite64|fdatasync)\(", trace.read_text())]
    assert "".join(calls).startswith("ppfpfp")


def test_a_second_create_changes_nothing(bench: Bench) -> None:
    """A session that is open stays, for this client and for one that was started anew."""
    target, spec = bench.target(), bench.spec("web01")
    target.create(spec)
    client = hold_session(bench, spec)
    try:
        before = request(control_socket(bench.host.target_socket), Mode.TARGET, Operation.SHOW)
        target.create(spec)
        bench.target().create(spec)
        assert request(control_socket(bench.host.target_socket), Mode.TARGET, Operation.SHOW) == before
        assert target.sessions("web01") == [Session(initiator=initiator_iqn("web01"), address=GUEST)]
        assert client.poll() is None
    finally:
        client.kill()
        client.wait()


def test_a_target_that_differs_is_made_anew(bench: Bench) -> None:
    """Another secret, a LUN that was taken away by hand."""
    target, spec = bench.target(), bench.spec("web01")
    target.create(spec)
    changed = spec.model_copy(update={"chap": Chap(user="web01", secret=new_secret())})
    bench.target().create(changed)
    assert "Authentication failure" in bench.read_capacity(spec).stderr
    assert bench.read_capacity(changed).returncode == 0
    run("tgtadm", "-m", "logicalunit", "-o", "delete", "-t", "1", "-l", "1", env=bench.env)
    assert not target.exists("web01")
    target.create(changed)
    assert target.exists("web01")
    assert bench.read_capacity(changed).returncode == 0


def test_delete_closes_a_live_session_and_the_file(bench: Bench) -> None:
    """While the guest reads all the time; tgtd and the other mount live on."""
    target, spec, other = bench.target(), bench.spec("web01"), bench.spec("db01")
    target.create(spec)
    target.create(other)
    client = hold_session(bench, spec)
    try:
        assert bench.is_open(spec.backing_file)
        target.delete("web01")
        assert not bench.is_open(spec.backing_file)
    finally:
        client.kill()
        client.wait()
    assert target.mounts() == ["db01"]
    assert target.sessions("web01") == []
    assert not target.exists("web01")
    accounts = run("tgtadm", "-m", "account", "-o", "show", env=bench.env).stdout
    assert "web01" not in accounts
    assert "db01" in accounts
    assert bench.read_capacity(other).returncode == 0
    target.delete("web01")


def test_targets_come_back_after_tgtd_was_killed(bench: Bench) -> None:
    """kill -9 and start: create() of the recorded specs brings them back, with the disk's identity."""
    target, specs = bench.target(), [bench.spec("web01"), bench.spec("db01")]
    for spec in specs:
        target.create(spec)
    inquiry = ["iscsi-inq", "--initiator-name", "INITIATOR", "--evpd=1", "--pagecode=128"]
    serial = bench.client(*inquiry, bench.url(specs[0]), spec=specs[0]).stdout
    assert bench.qemu_io(specs[0], "write -P 67 0 64k", "flush").returncode == 0
    bench.kill()
    with pytest.raises(UnavailableError, match="does not run"):
        target.exists("web01")
    bench.start()
    assert target.mounts() == []
    for spec in reversed(specs):
        target.create(spec)
    assert target.mounts() == ["db01", "web01"]
    assert bench.qemu_io(specs[0], "read -P 67 0 64k").returncode == 0
    assert serial
    assert bench.client(*inquiry, bench.url(specs[0]), spec=specs[0]).stdout == serial


def test_many_mounts_at_once(bench: Bench) -> None:
    """Created by two services from many threads: every one has its own number."""
    targets = [bench.target(), bench.target()]
    specs = [bench.spec(f"m{number}") for number in range(12)]
    failures: list[Exception] = []

    def make(number: int) -> None:
        try:
            targets[number % 2].create(specs[number])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(len(specs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert targets[0].mounts() == sorted(spec.mount for spec in specs)
    assert all(bench.read_capacity(spec).returncode == 0 for spec in specs)
    for spec in specs:
        targets[0].delete(spec.mount)
    assert targets[1].mounts() == []


def test_the_secret_is_in_no_argument_and_no_log(bench: Bench) -> None:
    """While targets are made over and over, every program's arguments are looked at."""
    spec = bench.spec("web01")
    seen: list[str] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    text = file.read_bytes()
                except OSError:
                    continue
                if spec.chap.secret.encode() in text:
                    seen.append(text.decode(errors="replace"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    target = bench.target()
    for _ in range(20):
        target.create(spec)
        target.delete("web01")
    done.set()
    watcher.join()
    assert not seen
    assert spec.chap.secret not in (bench.host.log / "tgtd.log").read_text()


def test_what_cannot_work_is_told(bench: Bench, tmp_path: Path) -> None:
    """Missing file, read-only values, names and addresses that are none."""
    target, spec = bench.target(), bench.spec("web01")
    with pytest.raises(NotFoundError, match="does not exist"):
        target.create(spec.model_copy(update={"backing_file": tmp_path / "nothing"}))
    for changes in (
        {"mount": "Web 01"},
        {"initiator_address": "ALL"},
        {"initiator_address": "0.0.0.0/0"},
        {"chap": Chap(user="web01", secret="short")},
        {"chap": Chap(user="web01", secret="a" * 20 + ",b")},
        {"backing_file": Path("disk")},
    ):
        with pytest.raises(UsageError):
            target.create(spec.model_copy(update=changes))
    comma = bench.host.root / "a,b"
    comma.write_bytes(bytes(4096))
    with pytest.raises(UnsupportedError, match="comma") as caught:
        target.create(spec.model_copy(update={"backing_file": comma}))
    assert spec.chap.secret not in str(caught.value)


def test_no_tgtd_is_told_with_the_way_out(tmp_path: Path) -> None:
    """And a socket of another program is not taken for tgtd."""
    target = TgtTarget(tmp_path / "tgtd.sock")
    with pytest.raises(UnavailableError, match="start the host's services"):
        target.mounts()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(control_socket(tmp_path / "tgtd.sock")))
        server.listen()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UnsupportedError):
            target.mounts()
        thread.join()


def test_an_address_in_use_is_told(bench: Bench) -> None:
    """A second tgtd on the same address would run without a portal."""
    root = bench.host.root / "second"
    words = [sys.executable, "-m", "livemount.target", "--root", str(root), "--portal", PORTAL]
    done = run(*words, check=False, namespace=bench.namespace)
    assert done.returncode == 4
    assert "in use" in done.stderr


def test_a_control_socket_whose_path_is_too_long_is_told(tmp_path: Path) -> None:
    """The kernel would cut it off."""
    with pytest.raises(UsageError, match="too long"):
        TgtTarget(tmp_path / ("x" * 120) / "tgtd.sock")
