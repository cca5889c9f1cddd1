"""Copies of several disks; what is known not to have changed is not read; a killed backup goes on where it was."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemount.core.errors import ConflictError, CorruptError, NotFoundError, UsageError
from livemount.core.machine import Copy, Firmware, InterfaceDescription, MachineDescription
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.disks import Changes, DiskInput, Range, opened
from livemount.media.repository import Note, Repository, Wanted

CHUNK = 512 << 10
MIB = 1 << 20


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def settle(*paths: Path) -> None:
    """Wait until a further change of the files would show in their times."""
    while time.time_ns() - max(path.stat().st_ctime_ns for path in paths) < 200_000_000:
        time.sleep(0.02)


def read_back(repository: Repository, copy: Copy, password: Path) -> list[bytes]:
    found = []
    for uri in copy.sources:
        source = open_source(uri, password)
        found.append(source.read(0, source.size))
        source.close()
    return found


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_secret(path, "correct horse")
    return path


@pytest.fixture
def repository(tmp_path: Path, password: Path) -> Repository:
    return Repository.init(tmp_path / "repository", password)


def test_a_machine_of_several_disks_is_one_copy(repository: Repository, tmp_path: Path, password: Path) -> None:
    contents = [noise(3 * CHUNK, 1), bytes(2 * CHUNK), noise(CHUNK + 512, 3)]
    inputs = [
        DiskInput(write(tmp_path / f"{n}.raw", content), name=f"vd{n}", serial=f"S{n}")
        for n, content in enumerate(contents)
    ]
    machine = MachineDescription(
        interfaces=(InterfaceDescription(mac="52:54:00:00:00:01", model="virtio"),),
        system="Debian 12",
        hypervisor="kvm",
    )
    made = repository.make(inputs, "web01", machine, wanted=Wanted(boot=2, tags=("nightly", "before upgrade")))
    assert repository.find("web01") == made.copy
    copy = Repository.open(repository.path, password).find("web01")
    assert read_back(repository, copy, password) == contents
    assert (copy.boot, copy.source) == (2, copy.disks[2].source)
    assert [(disk.file, disk.size, disk.stored) for disk in copy.disks] == [
        ("disk0.raw", 3 * CHUNK, 3 * CHUNK),
        ("disk1.raw", 2 * CHUNK, 0),
        ("disk2.raw", CHUNK + 512, CHUNK + 512),
    ]
    assert (copy.size, copy.stored) == (6 * CHUNK + 512, 4 * CHUNK + 512)
    told = copy.description
    assert (told.tags, told.system, told.interfaces) == (("nightly", "before upgrade"), "Debian 12", machine.interfaces)
    assert [(disk.name, disk.serial, disk.boot) for disk in told.disks] == [
        ("vd0", "S0", False),
        ("vd1", "S1", False),
        ("vd2", "S2", True),
    ]
    assert [repository.digest(copy, n) for n in range(3)] == [hashlib.sha256(c).hexdigest() for c in contents]
    assert repository.check(100).ok


def test_a_copy_of_an_earlier_version_is_its_one_disk(repository: Repository, tmp_path: Path, password: Path) -> None:
    image = write(tmp_path / "old.raw", noise(CHUNK) + bytes(CHUNK))
    old = b'{"firmware": "uefi", "cpus": 2, "memory_mib": 512, "architecture": "x86_64"}'
    with opened([DiskInput(image)]) as disks:
        repository._native.backup("web01", old, disks, [], None, 1, lambda _read, _total: None)
    copy = repository.find("web01")
    assert copy.description == MachineDescription(firmware=Firmware.UEFI, cpus=2, memory_mib=512)
    assert (copy.size, copy.stored, copy.boot, len(copy.disks)) == (2 * CHUNK, CHUNK, 0, 1)
    assert copy.sources == [copy.source]
    assert read_back(repository, copy, password) == [image.read_bytes()]
    # It is also what a list of changes can be relative to.
    made = repository.make([DiskInput(image, changes=Changes(since=copy.id, ranges=()))], "web01")
    assert (made.read, read_back(repository, made.copy, password)) == (0, [image.read_bytes()])
    assert Note.model_validate_json(b'{"machine": %b, "size": 512, "stored": 0}' % old).disks == ()


def test_a_source_is_backed_up_by_its_uri(repository: Repository, tmp_path: Path, password: Path) -> None:
    raw = write(tmp_path / "d.raw", noise(CHUNK, 5) + bytes(8 * CHUNK) + noise(CHUNK, 6))
    image = tmp_path / "d.qcow2"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    with pytest.raises(UsageError, match="no raw image"):
        repository.make([DiskInput(image)], "web01")
    made = repository.make([DiskInput(f"image://{image}")], "web01", wanted=Wanted(verify=True))
    assert read_back(repository, made.copy, password) == [raw.read_bytes()]
    assert made.read == 2 * CHUNK


def test_what_did_not_change_is_not_read(repository: Repository, tmp_path: Path, password: Path) -> None:
    one, two = (write(tmp_path / f"{n}.raw", noise(4 * CHUNK, n)) for n in range(2))
    settle(one, two)
    inputs = [DiskInput(one), DiskInput(two)]
    assert repository.make(inputs, "web01").read == 8 * CHUNK
    assert repository.make(inputs, "web01").read == 0
    with two.open("r+b") as file:
        file.write(b"changed")
    settle(two)
    last = repository.make(inputs, "web01")
    assert last.read == 4 * CHUNK
    assert read_back(repository, last.copy, password) == [one.read_bytes(), two.read_bytes()]
    # The same file as the disk of another machine, or in another place, is read.
    assert repository.make([DiskInput(two)], "db01").read == 4 * CHUNK
    assert repository.make(inputs[::-1], "web01").read == 8 * CHUNK
    assert repository.make(inputs, "web01", wanted=Wanted(read_all=True)).read == 8 * CHUNK


SIZE = 9 * CHUNK + 4096
WRITES = st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(1, CHUNK * 2), st.integers(0, 3)), max_size=5)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    folder = tmp_path_factory.mktemp("shared")
    write_secret(folder / "password", "p")
    return Repository.init(folder / "repository", folder / "password"), folder / "password"


@settings(max_examples=12, deadline=None)
@given(first=WRITES, later=st.lists(WRITES, min_size=1, max_size=2), punch=st.booleans())
def test_a_copy_by_lists_of_changes_is_the_disk(
    shared: tuple[Repository, Path],
    first: list[tuple[int, int, int]],
    later: list[list[tuple[int, int, int]]],
    punch: bool,
) -> None:
    repository, password = shared
    model = bytearray(SIZE)
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        file.truncate(SIZE)
        path = Path(file.name)

        def apply(writes: list[tuple[int, int, int]]) -> tuple[Range, ...]:
            ranges = []
            for offset, length, seed in writes:
                length = min(length, SIZE - offset)
                data = noise(length, seed) if seed else bytes(length)
                model[offset : offset + length] = data
                if seed or not punch:
                    os.pwrite(file.fileno(), data, offset)
                else:
                    where = ["--offset", str(offset), "--length", str(length)]
                    subprocess.run(["fallocate", "--punch-hole", *where, str(path)], check=True)
                ranges.append((offset, length))
            return tuple(ranges)

        apply(first)
        copy = repository.make([DiskInput(path)], "random").copy
        contents = [bytes(model)]
        copies = [copy]
        for writes in later:
            changes = Changes(since=copy.id, ranges=apply(writes))
            made = repository.make([DiskInput(path, changes=changes)], "random")
            touched = {
                n for offset, length in changes.ranges for n in range(offset // CHUNK, -(-(offset + length) // CHUNK))
            }
            assert made.read <= len(touched) * CHUNK
            copy = made.copy
            copies.append(copy)
            contents.append(bytes(model))
    for copy, content in zip(copies, contents, strict=True):
        assert repository.digest(copy) == hashlib.sha256(content).hexdigest()
        source = open_source(copy.source, password)
        assert copy.stored == sum(part.length for part in source.extents(0, SIZE) if not part.hole)


def test_a_list_of_changes_that_cannot_be_right_is_refused(repository: Repository, tmp_path: Path) -> None:
    image = write(tmp_path / "a.raw", noise(2 * CHUNK))
    copy = repository.backup(image, "web01")
    other = repository.backup(image, "db01")

    def backup(changes: Changes, *, wanted: Wanted = Wanted()) -> Copy:  # noqa: B008
        return repository.make([DiskInput(image, changes=changes)], "web01", wanted=wanted).copy

    with pytest.raises(NotFoundError):
        backup(Changes(since="0" * 64, ranges=()))
    with pytest.raises(UsageError, match="no copy of web01"):
        backup(Changes(since=f"db01@{other.id}", ranges=()))
    with pytest.raises(UsageError, match="outside"):
        backup(Changes(since=copy.id, ranges=((2 * CHUNK - 512, 1024),)))
    # Stale: what the list does not name has changed all the same.
    with image.open("r+b") as file:
        file.seek(CHUNK)
        file.write(b"not in the list")
    stale = Changes(since=copy.id, ranges=((0, 512),))
    before = repository.copies()
    with pytest.raises(CorruptError, match="differs"):
        backup(stale, wanted=Wanted(verify=True))
    assert repository.copies() == before
    with image.open("r+b") as file:
        file.truncate(4 * CHUNK)
    with pytest.raises(ConflictError, match="says nothing"):
        backup(Changes(since=copy.id, ranges=()))
    assert repository.copies() == before


def test_lists_of_changes_are_checked(tmp_path: Path) -> None:
    def load(text: str, since: str | None = None) -> Changes:
        return Changes.load(write(tmp_path / "changes.json", text.encode()), since)

    assert load('{"since": "a@1", "disk": 1, "ranges": [[0, 5]]}') == Changes(since="a@1", disk=1, ranges=((0, 5),))
    assert load("[[0, 5], [10, 1]]", "a@1").ranges == ((0, 5), (10, 1))
    for bad in ("", "[[0, 5]]", '{"since": "a", "ranges": [[0, 0]]}', '{"since": "a", "ranges": [[-1, 5]]}', "7"):
        with pytest.raises(UsageError):
            load(bad)
    with pytest.raises(UsageError, match="relative to"):
        load('{"since": "b", "ranges": []}', "a")


KILLED = """
import os, signal, sys, time
from pathlib import Path
from livemount.media.disks import DiskInput
from livemount.media.repository import Note, Repository, Wanted
from livemount.media.sources.file import RawImage
repository = Repository.open(Path(sys.argv[1]), Path(sys.argv[2]))
read, whole = RawImage.read, 0
def noted():
    return sum(file.stat().st_size for file in repository.pins.unfinished.glob("*"))
begun = noted()
def counted(self, offset, length):
    global whole
    whole += length
    if whole > 48 << 20:
        # More than a pack is read, also without what is under way: when the journal has it, the end comes.
        while noted() == begun:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return read(self, offset, length)
RawImage.read = counted
repository.make([DiskInput(uri) for uri in sys.argv[3:]], "web01", wanted=Wanted(checkpoint=1))
"""


def kill_a_backup(repository: Repository, password: Path, inputs: list[DiskInput]) -> None:
    words = [sys.executable, "-c", KILLED, repository.path, password, *(each.place for each in inputs)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert not repository.copies()


def test_a_killed_backup_goes_on_where_it_was(repository: Repository, tmp_path: Path, password: Path) -> None:
    images = [write(tmp_path / f"{n}.raw", noise(64 * MIB, n) + bytes(CHUNK)) for n in range(2)]
    inputs = [DiskInput(f"file://{image}") for image in images]
    for _ in range(2):
        kill_a_backup(repository, password, inputs)
    journals = list(repository.pins.unfinished.iterdir())
    assert len(journals) == 1
    assert journals[0].stat().st_mode & 0o777 == 0o600
    # A record that was cut off, and what comes after it, counts as not written.
    with journals[0].open("ab") as file:
        file.write(b"\x40\0\0\0torn")
    whole = sum(image.stat().st_size for image in images)
    made = repository.make(inputs, "web01", wanted=Wanted(checkpoint=1, verify=True))
    assert 0 < made.read <= whole - 2 * 31 * MIB
    assert read_back(repository, made.copy, password) == [image.read_bytes() for image in images]
    assert not list(repository.pins.unfinished.iterdir())
    assert repository.check(100).ok


def test_what_a_given_up_backup_left_is_pruned(repository: Repository, tmp_path: Path, password: Path) -> None:
    image = write(tmp_path / "big.raw", noise(64 * MIB))
    inputs = [DiskInput(f"file://{image}")]
    kill_a_backup(repository, password, inputs)
    journal = next(repository.pins.unfinished.iterdir())
    left = journal.read_bytes()
    assert repository.prune().marked > 30 * MIB
    assert not list(repository.pins.unfinished.iterdir())
    # A journal that names what is gone leads to another read, not to a broken copy.
    journal.write_bytes(left)
    made = repository.make(inputs, "web01", wanted=Wanted(verify=True))
    assert made.read == 64 * MIB
    assert repository.check(100).ok


def test_a_changed_disk_does_not_go_on_from_the_old_one(repository: Repository, tmp_path: Path, password: Path) -> None:
    image = write(tmp_path / "big.raw", noise(64 * MIB))
    inputs = [DiskInput(f"file://{image}")]
    kill_a_backup(repository, password, inputs)
    with image.open("r+b") as file:
        file.write(b"changed")
    made = repository.make(inputs, "web01", wanted=Wanted(verify=True))
    assert made.read == 64 * MIB


def test_a_large_disk_is_kept_in_segments(repository: Repository, tmp_path: Path, password: Path) -> None:
    size = (160 << 30) + 4096
    image = tmp_path / "large.raw"
    places = [0, (64 << 30) - 100, (100 << 30) + 7, size - 300]
    with image.open("wb") as file:
        file.truncate(size)
        for place in places:
            file.seek(place)
            file.write(noise(200, place % 97))
    made = repository.make([DiskInput(image)], "web01")
    source = open_source(made.copy.source, password)
    assert source.size == made.copy.size == size
    assert source.chunk_size == CHUNK
    for place in places:
        assert source.read(place, 200) == noise(200, place % 97)
    assert source.read(150 << 30, 4096) == bytes(4096)
    stored = sum(extent.length for extent in source.extents(0, size) if not extent.hole)
    assert stored == made.copy.stored == 4 * CHUNK + 4096
    source.close()
    # One write later only that segment's list is new.
    with image.open("r+b") as file:
        file.seek(100 << 30)
        file.write(b"new")
    changes = Changes(since=made.copy.id, ranges=((100 << 30, 3),))
    again = repository.make([replace(DiskInput(image), changes=changes)], "web01")
    assert again.read == CHUNK
    source = open_source(again.copy.source, password)
    assert source.read(100 << 30, 10) == b"new" + bytes(4) + noise(200, places[2] % 97)[:3]
    assert source.read((64 << 30) - 100, 200) == noise(200, places[1] % 97)
    source.close()
    assert repository.check(100).ok


def test_a_disk_of_many_tebibytes_is_backed_up(repository: Repository, tmp_path: Path) -> None:
    image = tmp_path / "huge.raw"
    with image.open("wb") as file:
        file.truncate(8 << 40)
        file.seek((8 << 40) - 512)
        file.write(noise(512))
    assert repository.make([DiskInput(image)], "web01").copy.stored == CHUNK
