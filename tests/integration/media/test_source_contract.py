"""What every source keeps to: right bytes or an error of its class, from many threads, and again when it is back."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from livemount.media import Source, aws, nbd_export, open_source
from livemount.media.sources import azure, http
from tests.support.agents import AgentSubject
from tests.support.foreign import (
    MIB,
    BorgSubject,
    FileSubject,
    ForeignResticSubject,
    HttpsSubject,
    HttpSubject,
    NbdCertificateSubject,
    NbdPskSubject,
    NbdSubject,
    NbdUnixSubject,
    ResticSubject,
    Subject,
)
from tests.support.foreign_clouds import AzureBlockSubject, AzureSubject, EbsSubject, S3Subject, end_stand_ins
from tests.support.foreign_files import FilesSubject
from tests.support.foreign_images import (
    Qcow2ChainSubject,
    Qcow2Subject,
    VhdSubject,
    VhdxSubject,
    VmdkSplitSubject,
    VmdkSubject,
)
from tests.support.foreign_lvm import LvsStandInSubject

pytestmark = pytest.mark.integration

Answer = TypeVar("Answer")

SUBJECTS: dict[str, type[Subject]] = {
    "file": FileSubject,
    "restic": ResticSubject,
    "restic-foreign": ForeignResticSubject,
    "files": FilesSubject,
    "nbd": NbdSubject,
    "nbd-unix": NbdUnixSubject,
    "nbds-psk": NbdPskSubject,
    "nbds-certificates": NbdCertificateSubject,
    "borg": BorgSubject,
    "http": HttpSubject,
    "https": HttpsSubject,
    "qcow2": Qcow2Subject,
    "qcow2-chain": Qcow2ChainSubject,
    "vmdk": VmdkSubject,
    "vmdk-split": VmdkSplitSubject,
    "vhd": VhdSubject,
    "vhdx": VhdxSubject,
    "agent": AgentSubject,
    "lvm-lvs-stand-in": LvsStandInSubject,
    "s3-moto": S3Subject,
    "ebs-moto": EbsSubject,
    "azure-pages-azurite": AzureSubject,
    "azure-blocks-azurite": AzureBlockSubject,
}


@pytest.fixture(scope="module", autouse=True)
def stand_ins() -> Iterator[None]:
    """Those that subjects share end with the module."""
    yield
    end_stand_ins()


@pytest.fixture
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    # Sockets' paths are short.
    (tmp_path / "d").mkdir()
    made = SUBJECTS[request.param](tmp_path / "d")
    try:
        yield made
    finally:
        made.close_all()


@pytest.fixture
def impatient(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that says nothing is given up soon."""
    for module in (nbd_export, http, aws):
        monkeypatch.setattr(module, "PATIENCE", subject.patience)
        monkeypatch.setattr(module, "CONNECT_PATIENCE", subject.patience)
    monkeypatch.setattr(aws, "ATTEMPTS", 1)


def patiently(call: Callable[[], Answer]) -> Answer:
    """The answer of a server that is well: on a busy machine it may not come in the time of the impatient."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return call()
        except (UnavailableError, NotFoundError):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def each(what: str = "") -> pytest.MarkDecorator:
    """All subjects, or those that can be or suffer something."""
    names = [name for name, kind in SUBJECTS.items() if not what or what in kind.can]
    return pytest.mark.parametrize("subject", names, indirect=True)


def ranges(size: int, seed: int, count: int) -> Iterator[tuple[int, int]]:
    """Random ranges of a disk, small ones and large ones, and its ends."""
    choose = random.Random(seed)
    yield 0, 512
    yield size - 1, 1
    for _ in range(count):
        offset = choose.randrange(size)
        yield offset, min(choose.choice((1, 4096, 65536, choose.randrange(3 * MIB))), size - offset)


def reads_what_it_can(source: Source, content: bytes, most: int) -> list[LivemountError]:
    """Read a harmed source, all of it or until there are `most` errors: what comes is right. Returns the errors."""
    errors: list[LivemountError] = []
    step = 64 << 10
    for offset in range(0, len(content), step):
        length = min(step, len(content) - offset)
        try:
            assert source.read(offset, length) == content[offset : offset + length], f"wrong bytes at {offset}"
        except LivemountError as error:
            errors.append(error)
            if len(errors) == most:
                break
    return errors


@each()
def test_bytes_are_those_of_the_disk(subject: Subject) -> None:
    source, content = subject.open(), subject.content
    assert source.size == len(content)
    assert source.chunk_size >= 4096
    assert source.read(0, source.size) == content
    assert source.read(17, 0) == b""
    wrong: list[tuple[int, int]] = []
    done = threading.Semaphore(0)

    def reader(seed: int) -> None:
        for offset, length in ranges(source.size, seed, 20):
            if source.read(offset, length) != content[offset : offset + length]:
                wrong.append((offset, length))
        done.release()

    threads = [threading.Thread(target=reader, args=(seed,)) for seed in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(done.acquire(blocking=False) for _ in threads), "a reader failed"
    source.close()


@each()
def test_extents_are_whole_and_their_holes_are_zero(subject: Subject) -> None:
    source, content = subject.open(), subject.content
    for offset, length in [(0, source.size), *ranges(source.size, 1, 12)]:
        found = list(source.extents(offset, length))
        assert [extent.offset for extent in found] == [
            offset + sum(extent.length for extent in found[:number]) for number in range(len(found))
        ]
        assert sum(extent.length for extent in found) == length
        for extent in found:
            assert extent.length > 0
            end = extent.offset + extent.length
            assert not extent.hole or content.count(0, extent.offset, end) == extent.length
    assert list(source.extents(MIB, 0)) == []
    holes = sum(extent.length for extent in source.extents(0, source.size) if extent.hole)
    assert holes >= (MIB if "holes" in subject.can else 0)
    source.close()


@each()
def test_the_identity_is_the_contents(subject: Subject) -> None:
    first = subject.open()
    identity = first.identity
    assert re.fullmatch(r"[0-9a-f]{32,128}", identity)
    second = subject.open()
    assert second.identity == identity
    second.close()
    first.close()
    subject.serve_another()
    other = subject.open()
    assert other.identity != identity
    assert other.read(0, MIB) == subject.content[:MIB]
    other.close()


@each()
def test_the_end_and_the_edges(subject: Subject) -> None:
    source = subject.open()
    for offset, length in ((-1, 1), (0, -1), (source.size, 1), (source.size - 511, 512), (1 << 62, 1)):
        with pytest.raises((UsageError, OverflowError)):
            source.read(offset, length)
    source.close()
    source.close()
    with pytest.raises(UnavailableError):
        source.read(0, 512)


@each()
def test_what_is_not_there_is_not_found(subject: Subject) -> None:
    with pytest.raises(NotFoundError):
        open_source(subject.missing(), subject.password)


@each("denied")
def test_wrong_credentials_are_refused(subject: Subject) -> None:
    subject.spoil_credentials()
    with pytest.raises(DeniedError):
        subject.open()
    if subject.password is not None:
        subject.password.unlink()
        with pytest.raises(DeniedError):
            subject.open()
    subject.password = None
    with pytest.raises(DeniedError):
        subject.open()


@each("away")
def test_a_source_that_is_away_is_read_when_it_is_back(subject: Subject, impatient: None) -> None:
    source, content = patiently(subject.open), subject.content
    identity = source.identity
    assert patiently(lambda: source.read(0, 4096)) == content[:4096]
    subject.stop()
    for _ in range(3):
        # All of it: chunks are cut by content, so the one read above may be a large part of the disk.
        with pytest.raises((UnavailableError, NotFoundError)):
            source.read(0, source.size)
    with pytest.raises((UnavailableError, NotFoundError)):
        subject.open()
    subject.start()
    assert patiently(lambda: source.read(2 * MIB, MIB)) == content[2 * MIB : 3 * MIB]
    again = patiently(subject.open)
    assert (again.identity, again.size) == (identity, source.size)
    again.close()
    source.close()


@each("hang")
def test_a_source_that_says_nothing_is_unavailable(subject: Subject, impatient: None) -> None:
    source, content = patiently(subject.open), subject.content
    subject.hang()
    found: list[LivemountError] = []

    def reader() -> None:
        try:
            source.read(0, 4096)
        except LivemountError as error:
            found.append(error)

    threads = [threading.Thread(target=reader) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(threads)
    assert all(isinstance(error, UnavailableError) for error in found)
    with pytest.raises(UnavailableError):
        subject.open()
    subject.go_on()
    assert patiently(lambda: source.read(MIB, MIB)) == content[MIB : 2 * MIB]
    source.close()


@each("busy")
def test_a_source_that_is_too_busy_is_asked_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws, "ATTEMPTS", 1)  # so that a second request is ours, not botocore's
    source, content = subject.open(), subject.content
    subject.be_busy(True)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(source.read(0, 4096)))
    reader.start()
    deadline = time.monotonic() + 60
    while subject.refused_as_busy() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found == []
    subject.be_busy(False)
    reader.join()
    assert found == [content[:4096]]
    monkeypatch.setattr(aws, "THROTTLED_PATIENCE", 0.0)
    monkeypatch.setattr(azure, "THROTTLED_PATIENCE", 0.0)
    subject.be_busy(True)
    with pytest.raises(UnavailableError):
        source.read(0, 4096)
    source.close()


@each("truncated")
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_truncated_source_gives_no_wrong_bytes(subject: Subject, opened_before: bool) -> None:
    content = subject.content
    source = subject.open() if opened_before else None
    subject.truncate()
    _assert_damage_is_told(subject, source, content)


@each("corrupt")
@pytest.mark.parametrize("opened_before", [False, True])
def test_a_damaged_source_gives_no_wrong_bytes(subject: Subject, opened_before: bool) -> None:
    content = subject.content
    source = subject.open() if opened_before else None
    subject.damage()
    _assert_damage_is_told(subject, source, content)


def _assert_damage_is_told(subject: Subject, source: Source | None, content: bytes) -> None:
    opened_before = source is not None
    try:
        source = source or subject.open()
    except CorruptError:
        return
    if source.size != len(content):
        # A raw image that was cut before it was opened is another, shorter one.
        assert isinstance(subject, FileSubject | HttpSubject)
        content = subject.content
        assert reads_what_it_can(source, content, 1) == []
        return
    errors = reads_what_it_can(source, content, subject.most_errors)
    # What was open may know it all by heart.
    assert errors or opened_before
    assert all(isinstance(error, CorruptError) for error in errors)
    source.close()
