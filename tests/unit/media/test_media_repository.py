"""Copies are written whole or not at all, found by their references, and read back byte for byte."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemount.core.errors import (
    ConflictError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.machine import Copy, Firmware, MachineDescription
from livemount.core.secrets import write_secret
from livemount.media import Extent, open_source
from livemount.media.repository import Repository

CHUNK = 512 << 10


def write_image(path: Path, size: int, parts: list[tuple[int, bytes]]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
    return path


def noise(length: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(length)


def packed(repository: Path) -> int:
    return sum(file.stat().st_size for file in (repository / "data").rglob("*") if file.is_file())


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_secret(path, "correct horse")
    return path


@pytest.fixture
def repository(tmp_path: Path, password: Path) -> Repository:
    return Repository.init(tmp_path / "repository", password)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "web01.raw", 8 * CHUNK, [(0, noise(CHUNK)), (5 * CHUNK + 512, noise(4096, 1))])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Repository, Path]:
    folder = tmp_path_factory.mktemp("shared")
    write_secret(folder / "password", "p")
    return Repository.init(folder / "repository", folder / "password"), folder / "password"


PARTS = st.lists(
    st.tuples(st.integers(0, 8 * CHUNK), st.integers(1, 2 * CHUNK), st.integers(0, 3)), min_size=0, max_size=6
)


@settings(max_examples=25, deadline=None)
@given(
    sectors=st.integers(1, 8 * CHUNK // 512),
    parts=PARTS,
    reads=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8),
)
def test_what_is_read_is_what_was_backed_up(
    shared: tuple[Repository, Path],
    sectors: int,
    parts: list[tuple[int, int, int]],
    reads: list[tuple[float, float]],
) -> None:
    repository, password = shared
    size = sectors * 512
    content = bytearray(size)
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        file.truncate(size)
        for offset, length, seed in parts:
            # Seed 0: zeros that are written, which are a hole for a source all the same.
            data = (noise(length, seed) if seed else bytes(length))[: max(0, size - offset)]
            content[offset : offset + len(data)] = data
            file.seek(offset)
            file.write(data)
        file.flush()
        copy = repository.backup(Path(file.name), "random")
    assert repository.digest(copy) == hashlib.sha256(content).hexdigest()
    source = open_source(copy.source, password)
    assert source.size == copy.size == size
    assert source.chunk_size == CHUNK
    for start, extent in reads:
        offset = int(start * size)
        length = int(extent * (size - offset))
        assert source.read(offset, length) == content[offset : offset + length]
        end = offset
        for part in source.extents(offset, length):
            assert part.offset == end
            assert part.length > 0
            end += part.length
            assert not part.hole or not any(content[part.offset : end])
        assert end == offset + length
    stored = sum(part.length for part in source.extents(0, size) if not part.hole)
    assert stored == copy.stored


def test_the_copy_tells_what_it_is(repository: Repository, image: Path, password: Path) -> None:
    description = MachineDescription(firmware=Firmware.UEFI, cpus=4, memory_mib=2048)
    copy = repository.backup(image, "web01", description)
    assert copy.name == "web01"
    assert copy.size == 8 * CHUNK
    assert copy.stored == 2 * CHUNK
    assert repository.copies() == [copy]
    told = Repository.open(repository.path, password).find("web01").description
    assert told.model_copy(update={"disks": ()}) == description
    assert [(disk.file, disk.size, disk.boot) for disk in told.disks] == [("disk0.raw", 8 * CHUNK, True)]
    assert list(open_source(copy.source, password).extents(CHUNK // 2, 8 * CHUNK - CHUNK // 2)) == [
        Extent(CHUNK // 2, CHUNK // 2, hole=False),
        Extent(CHUNK, 4 * CHUNK, hole=True),
        Extent(5 * CHUNK, CHUNK, hole=False),
        Extent(6 * CHUNK, 2 * CHUNK, hole=True),
    ]


def test_a_second_copy_stores_next_to_nothing_and_has_the_same_identity(
    repository: Repository, image: Path, password: Path
) -> None:
    first = repository.backup(image, "web01")
    before = packed(repository.path)
    assert before > CHUNK
    second = repository.backup(image, "web01")
    # The description at most: it tells what names the image's content, once that is older than a moment.
    assert packed(repository.path) - before < 4096
    before = packed(repository.path)
    assert second.id != first.id
    assert open_source(first.source, password).identity == open_source(second.source, password).identity
    with image.open("r+b") as file:
        file.write(b"changed")
    third = repository.backup(image, "web01")
    assert CHUNK < packed(repository.path) - before < CHUNK + 8192
    assert open_source(third.source, password).identity != open_source(first.source, password).identity
    assert repository.digest(third) != repository.digest(first)


def test_copies_are_listed_in_order_and_found_by_reference(repository: Repository, image: Path) -> None:
    web = [repository.backup(image, "web01") for _ in range(3)]
    other = repository.backup(image, "db01")
    assert repository.copies("web01") == web
    assert repository.copies() == [*web, other]
    assert repository.find("web01") == repository.find("web01@latest") == web[-1]
    assert repository.find(f"web01@{web[0].id[:16].upper()}") == web[0]
    with pytest.raises(NotFoundError, match="no copy of mail") as absent:
        repository.find("mail")
    assert "db01, web01" in str(absent.value)
    # Found by no id of its own machine, whatever other machines have.
    with pytest.raises(NotFoundError, match="copies of web01") as absent:
        repository.find(f"web01@{other.id}")
    assert all(copy.id[:12] in str(absent.value) for copy in web)
    for bad in ("", "@latest", "web01@", "Web 01", "../x"):
        with pytest.raises(UsageError):
            repository.find(bad)


def test_an_ambiguous_reference_lists_what_fits(repository: Repository, image: Path) -> None:
    copies: list[Copy] = []
    first: str | None = None
    while first is None:  # ends after 17 copies at the latest: there are 16 first digits
        copies.append(repository.backup(image, "web01"))
        digits = [copy.id[0] for copy in copies]
        first = next((digit for digit in digits if digits.count(digit) > 1), None)
    with pytest.raises(ConflictError, match="names 2 copies"):
        repository.find(f"web01@{first}")


def test_many_threads_read_at_once(repository: Repository, tmp_path: Path, password: Path) -> None:
    content = noise(16 * CHUNK, 7)
    copy = repository.backup(write_image(tmp_path / "big.raw", len(content), [(0, content)]), "big")
    source = open_source(copy.source, password)

    def read(seed: int) -> bool:
        choose = random.Random(seed)
        return all(
            source.read(at, 65536) == content[at : at + 65536]
            for at in (choose.randrange(len(content) - 65536) for _ in range(50))
        )

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(read, range(16)))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda _path: None, NotFoundError, "No such file"),
        (lambda path: path.mkdir(), UsageError, "not a regular file"),
        (os.mkfifo, UsageError, "not a regular file"),
        (lambda path: path.write_bytes(b""), LivemountError, "empty"),
        (lambda path: path.write_bytes(bytes(1000)), LivemountError, "1000 bytes"),
    ],
)
def test_what_is_no_image_is_refused(
    repository: Repository,
    tmp_path: Path,
    make: Callable[[Path], object],
    error: type[LivemountError],
    match: str,
) -> None:
    path = tmp_path / "image.raw"
    make(path)
    for description in (None, MachineDescription()):
        with pytest.raises(error, match=match) as raised:
            repository.backup(path, "web01", description)
        assert str(path) in str(raised.value)
    assert repository.copies() == []


@pytest.mark.parametrize("name", ["", "Web", "a/b", "..", "x" * 41])
def test_names_are_checked(repository: Repository, image: Path, name: str) -> None:
    with pytest.raises(UsageError):
        repository.backup(image, name)


def test_an_image_that_changes_while_it_is_read_makes_no_copy(repository: Repository, image: Path) -> None:
    def change(done: int, total: int) -> None:
        if done == 0:
            with image.open("r+b") as file:
                file.write(b"changed")

    with pytest.raises(ConflictError, match="was changed while it was read"):
        repository.backup(image, "web01", progress=change)
    assert repository.copies() == []


def test_an_image_that_is_replaced_while_it_is_read_makes_no_copy(repository: Repository, image: Path) -> None:
    def replace(done: int, total: int) -> None:
        if done == 0:
            shutil.copy(image, image.with_suffix(".new"))
            image.with_suffix(".new").replace(image)

    with pytest.raises(ConflictError, match="was changed"):
        repository.backup(image, "web01", progress=replace)
    assert repository.copies() == []


def test_an_image_that_becomes_shorter_while_it_is_read_makes_no_copy(repository: Repository, image: Path) -> None:
    def shorten(done: int, total: int) -> None:
        if done == 0:
            os.truncate(image, CHUNK)

    with pytest.raises(ConflictError, match="became shorter"):
        repository.backup(image, "web01", progress=shorten)
    assert repository.copies() == []


def test_progress_ends_at_the_total_and_may_cancel(repository: Repository, image: Path) -> None:
    seen: list[tuple[int, int]] = []
    repository.backup(image, "web01", progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 2 * CHUNK)
    assert seen[-1] == (2 * CHUNK, 2 * CHUNK)

    def cancel(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repository.backup(image, "db01", progress=cancel)
    assert repository.copies("db01") == []


def test_a_repository_is_made_once(repository: Repository, password: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="not empty"):
        Repository.init(repository.path, password)
    with pytest.raises(NotFoundError, match="no repository"):
        Repository.open(tmp_path / "elsewhere", password)


def test_a_wrong_password_is_told(repository: Repository, image: Path, tmp_path: Path) -> None:
    copy = repository.backup(image, "web01")
    write_secret(tmp_path / "wrong", "wrong")
    with pytest.raises(DeniedError, match="wrong password"):
        Repository.open(repository.path, tmp_path / "wrong")
    with pytest.raises(DeniedError, match="wrong password"):
        open_source(copy.source, tmp_path / "wrong")
    with pytest.raises(DeniedError, match="has a password"):
        open_source(copy.source, None)


def test_reads_outside_the_disk_and_after_close_fail(repository: Repository, image: Path, password: Path) -> None:
    source = open_source(repository.backup(image, "web01").source, password)
    for offset, length in ((source.size, 1), (0, source.size + 1), ((1 << 64) - 1, 1)):
        with pytest.raises(UsageError):
            source.read(offset, length)
    assert source.read(source.size, 0) == b""
    source.close()
    source.close()
    with pytest.raises(UnavailableError):
        source.read(0, 1)
    with pytest.raises(UnavailableError):
        source.extents(0, 1)


def test_a_copy_that_is_not_there_is_not_found(repository: Repository, image: Path, password: Path) -> None:
    copy = repository.backup(image, "web01")
    with pytest.raises(NotFoundError, match="no snapshot"):
        open_source(copy.source.replace(copy.id, "0" * 64), password)
    for file in ("/web01", "/web01/other", "/other/disk0.raw", "/", ""):
        with pytest.raises(NotFoundError, match="no file"):
            open_source(copy.source.replace("/web01/disk0.raw", file), password)
    with pytest.raises(UnsupportedError, match="no disk image"):
        open_source(copy.source.replace("disk0.raw", "machine.json"), password)
    with pytest.raises(UsageError, match="no snapshot id"):
        open_source(copy.source.replace(copy.id, "xyz"), password)


def test_a_repository_that_goes_away_is_unavailable_until_it_is_back(
    repository: Repository, image: Path, password: Path, tmp_path: Path
) -> None:
    source = open_source(repository.backup(image, "web01").source, password)
    repository.path.rename(tmp_path / "away")
    with pytest.raises(UnavailableError, match="is not there"):
        source.read(0, 4096)
    (tmp_path / "away").rename(repository.path)
    assert source.read(0, 4096) == image.read_bytes()[:4096]


def test_what_a_killed_writer_left_is_removed_after_a_day(repository: Repository, image: Path) -> None:
    temporary = repository.path / "tmp"
    for name, age in (("old", 2 * 86400), ("young", 60)):
        (temporary / name).write_bytes(b"half a pack")
        then = (temporary / name).stat().st_mtime - age
        os.utime(temporary / name, (then, then))
    repository.backup(image, "web01")
    assert [file.name for file in temporary.iterdir()] == ["young"]
