"""Every kind of store holds a repository as every other does: for us, for the real restic, and when something is wrong.

moto and Azurite are stand-ins; rest-server, sshd and restic are the real ones.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from livemount.core.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    NotFoundError,
    UnavailableError,
)
from livemount.core.machine import Copy
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.certificates import Authority
from livemount.media.disks import DiskInput
from livemount.media.pins import Lock
from livemount.media.registry import pin_source, unpin_source
from livemount.media.repository import Repository, Rules, Wanted
from livemount.media.sources.file import RawImage
from tests.support.rest_server import PASSWORD, USER, RestServer
from tests.support.stores import ELSEWHERE, KINDS, SECRET, Servers, Subject

pytestmark = pytest.mark.integration

MIB = 1 << 20
CHUNK = 512 << 10
AT_ONCE = timedelta(0)
READERS = 2


@pytest.fixture(scope="module", params=KINDS)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    started = Servers(request.param, tmp_path_factory.mktemp("s"))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture
def subject(servers: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setenv("LIVEMOUNT_HOME", str(tmp_path / "home"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_ACCOUNT_KEY", "AZURE_ACCOUNT_SAS"):
        monkeypatch.delenv(name, raising=False)
    return servers.subject(tmp_path)


@pytest.fixture
def elsewhere(subject: Subject) -> Subject:
    """One behind a proxy."""
    if subject.kind not in ELSEWHERE:
        pytest.skip("a folder has no server")
    return subject


def image(folder: Path, seed: int, size: int = 3 * MIB) -> tuple[Path, bytes]:
    """Bytes by chance, some text and a hole; the last MiB is the same whatever the seed."""
    content = random.Random(seed).randbytes(size) + b"text " * (MIB // 5) + bytes(MIB)
    content += random.Random("same").randbytes(MIB) + bytes(-len(content) % 512)
    path = folder / "disk.raw"
    path.write_bytes(content)
    return path, content


def test_a_copy_is_made_read_and_checked(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Repository.open(subject.place, subject.password)
    if subject.kind in ("s3", "azure"):
        with pytest.raises(NotFoundError, match=r"no (bucket|container)"):
            Repository.init(str(subject.place).replace("/vault/", "/other/"), subject.password)
    disk, content = image(tmp_path, 1)
    made = Repository.init(subject.place, subject.password).backup(disk, "web01")
    with pytest.raises(ConflictError):
        Repository.init(subject.place, subject.password)
    repository = Repository.open(subject.place, subject.password)
    assert repository.copies() == [made]
    source = open_source(made.source, subject.password)
    assert source.read(0, source.size) == content
    draw = random.Random(2)
    for _ in range(20):
        offset = draw.randrange(len(content))
        length = draw.randrange(min(MIB, len(content) - offset) + 1)
        assert source.read(offset, length) == content[offset : offset + length]
    assert any(extent.hole for extent in source.extents(0, source.size))
    source.close()
    assert repository.check(100).ok
    assert len(set(subject.files.names("snapshots/"))) == 1
    assert not any(SECRET in text for text in (made.source, repr(repository)))


def test_the_real_restic_reads_and_checks_it(subject: Subject, tmp_path: Path) -> None:
    if subject.restic is None:
        pytest.skip("restic cannot be told another address of Azure")
    disk, content = image(tmp_path, 1)
    repository = Repository.init(subject.place, subject.password)
    first = repository.backup(disk, "web01")
    repository.backup(image(tmp_path, 2)[0], "web01")
    pin_source(first.source, "mount.m1", "a mount", subject.password)
    write_secret(tmp_path / "plain", SECRET)
    place, environment = subject.restic
    environment = os.environ | environment | {"RESTIC_PASSWORD_FILE": str(tmp_path / "plain")}

    def restic(*words: str) -> bytes:
        done = subprocess.run(
            ["restic", "--no-cache", "-r", place, *words], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    restic("check", "--read-data")
    assert restic("dump", first.id, "/web01/disk0.raw") == content
    assert b"web01" in restic("snapshots")


def test_old_copies_go_and_mounted_ones_stay(subject: Subject, tmp_path: Path) -> None:
    repository = Repository.init(subject.place, subject.password)
    old = repository.backup(image(tmp_path, 1)[0], "web01")
    disk, content = image(tmp_path, 2)
    new = repository.backup(disk, "web01")
    pin_source(old.source, "mount.m1", "a mount", subject.password)
    # Of another process, as it were.
    repository = Repository.open(subject.place, subject.password)
    decisions = repository.forget(Rules(keep_last=1))
    assert [(each.copy.id, each.kept, each.reasons) for each in decisions] == [
        (old.id, True, ["a mount"]),
        (new.id, True, ["last"]),
    ]
    unpin_source(old.source, "mount.m1", subject.password)
    unpin_source(old.source, "mount.m1", subject.password)
    repository.forget(Rules(keep_last=1))
    assert repository.copies() == [new]
    with pytest.raises(NotFoundError):
        pin_source(old.source, "mount.m1", "too late", subject.password)
    assert repository.pins.all() == {}
    source = open_source(new.source, subject.password)
    before = sum(len(subject.files.get(name)) for name in subject.files.names("data/"))
    repository.prune(max_unused=0, keep_marked=AT_ONCE)
    assert repository.prune(max_unused=0, keep_marked=AT_ONCE).deleted > 0
    assert sum(len(subject.files.get(name)) for name in subject.files.names("data/")) < before - 2 * MIB
    # Opened before its packs were written anew.
    assert source.read(0, source.size) == content
    report = repository.check(100)
    assert report.ok
    assert not report.leftovers


def test_a_prune_and_a_backup_exclude_each_other(subject: Subject) -> None:
    if subject.kind not in ("local", "s3"):
        pytest.skip("all but folders have the same locks")
    Repository.init(subject.place, subject.password)
    one, two = (Repository.open(subject.place, subject.password).pins for _ in range(2))
    with (
        one.locked(Lock.PACKS, alone=False),
        two.locked(Lock.PACKS, alone=False),
        two.locked(Lock.PINS, alone=True),
        pytest.raises(ConflictError, match="backup"),
        two.locked(Lock.PACKS, alone=True, patience=0),
    ):
        pass
    with (
        one.locked(Lock.PACKS, alone=True),
        pytest.raises(ConflictError, match="pruned"),
        two.locked(Lock.PACKS, alone=False, patience=0),
    ):
        pass
    with two.locked(Lock.PACKS, alone=True, patience=0):
        pass


def test_what_is_pinned_or_forgotten_at_once_is_one_of_both(subject: Subject, tmp_path: Path) -> None:
    repository = Repository.init(subject.place, subject.password)
    copies = [repository.backup(image(tmp_path, seed, CHUNK)[0], "web01") for seed in range(4)]
    granted: set[str] = set()
    start = threading.Barrier(len(copies) + 1)

    def pin(copy: Copy) -> None:
        pins = Repository.open(subject.place, subject.password).pins
        start.wait()
        try:
            pins.pin(f"m-{copy.id[:8]}", copy.id, "a mount")
        except NotFoundError:
            return
        granted.add(copy.id)

    threads = [threading.Thread(target=pin, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    start.wait()
    repository.forget(Rules(keep_last=1))
    for thread in threads:
        thread.join()
    left = {copy.id for copy in Repository.open(subject.place, subject.password).copies()}
    assert granted <= left
    assert set(repository.pins.all()) == granted
    assert left == granted | {copies[-1].id}


def test_mounts_go_on_and_begin_while_others_are_forgotten_and_pruned(subject: Subject, tmp_path: Path) -> None:
    if subject.kind not in ("s3", "rest", "sftp"):
        pytest.skip("three kinds are enough")
    repository = Repository.init(subject.place, subject.password)
    made: list[tuple[Copy, bytes]] = []
    failures: list[BaseException] = []
    reads = [0] * READERS
    moved = threading.Condition()
    over = threading.Event()

    def back_up(seed: int) -> None:
        disk, content = image(tmp_path, seed, MIB)
        made.append((repository.backup(disk, "web01"), content))

    def mount(number: int) -> None:
        draw = random.Random(number)
        try:
            while not over.is_set():
                copy, content = draw.choice(made[-2:])
                try:
                    pin_source(copy.source, f"mount.m{number}", "a mount", subject.password)
                except NotFoundError:
                    continue
                source = open_source(copy.source, subject.password)
                for _ in range(2):
                    for at in draw.sample(range(0, len(content), CHUNK), len(content) // CHUNK):
                        assert source.read(at, CHUNK) == content[at : at + CHUNK]
                    with moved:
                        reads[number] += 1
                        moved.notify_all()
                source.close()
                unpin_source(copy.source, f"mount.m{number}", subject.password)
        except BaseException as error:
            failures.append(error)
            with moved:
                moved.notify_all()

    back_up(0)
    threads = [threading.Thread(target=mount, args=(number,)) for number in range(READERS)]
    for thread in threads:
        thread.start()
    deleted = 0
    try:
        for seed in range(1, 4):
            before = list(reads)
            back_up(seed)
            repository.forget(Rules(keep_last=1))
            deleted += repository.prune(max_unused=0, keep_marked=AT_ONCE).deleted
            # What is marked stays for 23 hours, so that no read is as slow as two prunes.
            with moved:
                assert moved.wait_for(
                    lambda: failures or all(now > then for now, then in zip(reads, before, strict=True)),  # noqa: B023
                    120,
                )
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert deleted > 0
    assert repository.pins.all() == {}
    assert repository.check(100).ok


def test_damage_is_told(subject: Subject, tmp_path: Path) -> None:
    disk, content = image(tmp_path, 1)
    made = Repository.init(subject.place, subject.password).backup(disk, "web01")
    source = open_source(made.source, subject.password)
    pack = subject.files.largest_pack()
    whole = subject.files.get(pack)
    subject.files.put(pack, whole[:100])
    with pytest.raises(CorruptError, match="cut short"):
        source.read(0, source.size)
    subject.files.delete(pack)
    with pytest.raises(CorruptError, match="missing from the repository"):
        source.read(0, source.size)
    subject.files.put(pack, bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CorruptError, match="MAC"):
        source.read(0, source.size)
    subject.files.put(pack, whole)
    assert source.read(0, source.size) == content
    snapshot = subject.files.names("snapshots/")[0]
    subject.files.put(snapshot, b"nonsense")
    listing = Repository.open(subject.place, subject.password).listing()
    assert listing.copies == []
    assert made.id in listing.damaged[0]


def test_a_dead_a_silent_and_a_cut_off_server_are_outages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEMOUNT_HOME", str(tmp_path / "home"))
    # All kinds at once: what takes its time is to wait.
    with ThreadPoolExecutor(len(ELSEWHERE)) as pool:
        list(pool.map(partial(fail_in_all_ways, tmp_path), ELSEWHERE))


def fail_in_all_ways(folder: Path, kind: str) -> None:
    folder = folder / kind
    servers = Servers(kind, folder)
    try:
        subject = servers.subject(folder)
        disk, content = image(folder, 1)
        made = Repository.init(subject.place, subject.password).backup(disk, "web01")
        source = open_source(made.source, subject.password)
        proxy = subject.proxy
        assert proxy is not None
        for broken in (proxy.die, proxy.hang, lambda: proxy.cut(2000)):
            broken()
            with pytest.raises(UnavailableError) as caught:
                source.read(0, source.size)
            assert not any(value in str(caught.value) for name, value in subject.keys.items() if "USER" not in name)
            if broken == proxy.die:
                with pytest.raises(UnavailableError):
                    Repository.open(subject.place, subject.password)
                proxy.revive()
            proxy.go_on()
            assert source.read(0, source.size) == content
    finally:
        servers.stop()


def test_wrong_keys_and_passwords_are_refused_and_never_shown(elsewhere: Subject) -> None:
    Repository.init(elsewhere.place, elsewhere.password)
    elsewhere.open_with(elsewhere.keys, "wrong")
    with pytest.raises(DeniedError, match="wrong password"):
        Repository.open(elsewhere.place, elsewhere.password)
    elsewhere.open_with(elsewhere.wrong_keys)
    with pytest.raises(DeniedError) as caught:
        Repository.open(elsewhere.place, elsewhere.password)
    said = f"{caught.value} {caught.value.hint}"
    assert not any(value in said for value in elsewhere.wrong_keys.values() if "secret" in value)


def test_a_chunk_is_one_request(elsewhere: Subject, tmp_path: Path) -> None:
    if elsewhere.kind == "sftp":
        pytest.skip("not HTTP")
    disk, content = image(tmp_path, 1)
    made = Repository.init(elsewhere.place, elsewhere.password).backup(disk, "web01")
    source = open_source(made.source, elsewhere.password)
    proxy = elsewhere.proxy
    assert proxy is not None
    proxy.requests.clear()
    assert source.read(CHUNK, CHUNK) == content[CHUNK : 2 * CHUNK]
    (request,) = proxy.requests
    assert request.startswith("GET ")
    assert "range: bytes=" in request.lower()


def test_a_backup_that_was_cut_off_goes_on_where_it_was(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if subject.kind != "s3":
        pytest.skip("the journal is of this machine: one kind is enough")
    repository = Repository.init(subject.place, subject.password)
    disk = tmp_path / "big.raw"
    disk.write_bytes(random.Random(1).randbytes(64 * MIB))
    inputs = [DiskInput(f"file://{disk}")]
    read, asked = RawImage.read, 0
    deadline = time.monotonic() + 120

    def cut_off(self: RawImage, offset: int, length: int) -> bytes:
        nonlocal asked
        asked += length
        if asked > 48 * MIB:
            # More than a pack is read: when the journal has it, the end comes.
            while not any(file.stat().st_size for file in repository.pins.unfinished.iterdir()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            raise UnavailableError("cut off")
        return read(self, offset, length)

    with monkeypatch.context() as patched:
        patched.setattr(RawImage, "read", cut_off)
        with pytest.raises(UnavailableError, match="cut off"):
            repository.make(inputs, "web01", wanted=Wanted(checkpoint=1))
    made = Repository.open(subject.place, subject.password).make(inputs, "web01")
    assert 0 < made.read <= 33 * MIB
    assert repository.digest(made.copy) == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_https_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "certificates")
    server = RestServer(tmp_path / "served", tls=authority.server("rest", ["127.0.0.1"]).folder)
    try:
        password = tmp_path / "password"
        keys = f"RESTIC_REST_USERNAME={USER}\nRESTIC_REST_PASSWORD={PASSWORD}\nPLAIN_HTTP=no"
        write_secret(password, f"{SECRET}\n{keys}")
        place = f"restic+rest://127.0.0.1:{server.port}/copies"
        with pytest.raises(DeniedError, match="cannot be trusted"):
            Repository.init(place, password)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.folder / "ca" / "ca-cert.pem"))
        disk, content = image(tmp_path, 1)
        made = Repository.init(place, password).backup(disk, "web01")
        source = open_source(made.source, password)
        assert source.read(0, source.size) == content
        source.close()
    finally:
        server.stop()


def test_an_append_only_rest_server_is_written_to_and_pinned_in(tmp_path: Path) -> None:
    server = RestServer(tmp_path / "served", append_only=True)
    try:
        password = tmp_path / "password"
        keys = f"RESTIC_REST_USERNAME={USER}\nRESTIC_REST_PASSWORD={PASSWORD}"
        write_secret(password, f"{SECRET}\n{keys}")
        # As deep as such a server allows, so that there is no room for a folder below.
        place = f"restic+rest://127.0.0.1:{server.port}/{USER}/copies"
        repository = Repository.init(place, password)
        old = repository.backup(image(tmp_path, 1)[0], "web01")
        new = repository.backup(image(tmp_path, 2)[0], "web01")
        with pytest.raises(DeniedError, match="append-only"):
            repository.forget(Rules(keep_last=1))
        assert repository.copies() == [old, new]
        pin_source(old.source, "mount.m1", "a mount", password)
        # Where it is administered it is a folder, and what is mounted from elsewhere is known there.
        here = Repository.open(tmp_path / "served" / USER / "copies", password)
        assert [each.kept for each in here.forget(Rules(keep_last=1))] == [True, True]
        unpin_source(old.source, "mount.m1", password)
        assert [each.kept for each in here.forget(Rules(keep_last=1))] == [False, True]
        here.prune()
        assert Repository.open(place, password).copies() == [new]
        assert here.check(100).ok
    finally:
        server.stop()
