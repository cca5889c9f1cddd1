"""borg archives: what a source leaves behind, what it locks, and a borg that does not answer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.core.errors import DeniedError, LivemountError, NotFoundError, UnavailableError, UsageError
from livemount.media import open_source
from livemount.media.sources import borg as borg_source
from tests.support.foreign import MIB, PASSWORD, BorgSubject, borg, borg_process, write_disk
from tests.support.suspend import suspend

ROOT = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.integration


@pytest.fixture
def subject(tmp_path: Path) -> Iterator[BorgSubject]:
    made = BorgSubject(tmp_path)
    yield made
    made.close_all()


def mounted(subject: BorgSubject) -> borg_source.BorgImage:
    source = subject.open()
    assert isinstance(source, borg_source.BorgImage)
    return source


def test_the_repository_is_locked_until_the_end(subject: BorgSubject) -> None:
    source = mounted(subject)
    pid = borg_process(source)
    command = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert PASSWORD.encode() not in command
    assert "/sys/mount" not in Path("/proc/self/mounts").read_text()
    prune = ("prune", "--keep-last", "1", "--lock-wait", "1", subject.repository)
    with pytest.raises(AssertionError, match="Failed to create/acquire the lock"):
        borg(subject.folder, PASSWORD, *prune)
    assert source.read(0, MIB) == subject.content[:MIB]
    source.close()
    assert not Path(f"/proc/{pid}").exists()
    assert not (subject.repository / "lock.roster").exists()
    borg(subject.folder, PASSWORD, *prune)


OPENS = """
import sys
from pathlib import Path
from livemount.media import open_source
from tests.support.foreign import borg_process

source = open_source(sys.argv[1], Path(sys.argv[2]))
assert source.read(0, 512)
print(borg_process(source), flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_of_a_killed_process(subject: BorgSubject, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "HOME": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", OPENS, subject.uri, str(subject.password)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as user:
        assert user.stdout is not None
        server = int(user.stdout.readline())
        assert b"borg" in Path(f"/proc/{server}/cmdline").read_bytes()
        user.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline, "borg is left"
        time.sleep(0.02)
    assert "borgfs" not in Path("/proc/self/mounts").read_text()
    assert [path.name for path in (tmp_path / "tmp").rglob("*") if path.is_file()] == []
    assert not (subject.repository / "lock.roster").exists()
    borg(subject.folder, PASSWORD, "delete", f"{subject.repository}::last night")


def test_a_borg_that_does_not_answer_is_given_up(subject: BorgSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(borg_source, "PATIENCE", 0.5)
    source = mounted(subject)
    suspend(borg_process(source))
    found: list[LivemountError] = []

    def reader(number: int) -> None:
        try:
            source.read(number * MIB, 512)
        except LivemountError as error:
            found.append(error)

    threads = [threading.Thread(target=reader, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found
    assert all(isinstance(error, UnavailableError) for error in found)
    assert source.read(0, source.size) == subject.content


def test_the_lock_of_a_killed_borg_does_not_count(subject: BorgSubject) -> None:
    source = mounted(subject)
    os.kill(borg_process(source), signal.SIGKILL)
    source.close()
    assert (subject.repository / "lock.roster").exists()
    borg(subject.folder, PASSWORD, "delete", f"{subject.repository}::last night")


def test_a_borg_that_is_killed_is_started_again(subject: BorgSubject) -> None:
    source = mounted(subject)
    content = subject.content
    for _ in range(2):
        os.kill(borg_process(source), signal.SIGTERM)  # which ends it without an error
        assert source.read(MIB, MIB) == content[MIB : 2 * MIB]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("archive=other&path=disks/disk.raw", NotFoundError),
        ("archive=last%20night&path=disks", UsageError),
        ("archive=last%20night&path=disks/..", UsageError),
        ("archive=last%20night&path=/", UsageError),
        ("archive=last%20night", UsageError),
    ],
)
def test_what_is_no_image(subject: BorgSubject, query: str, error: type[LivemountError]) -> None:
    with pytest.raises(error):
        open_source(f"borg://{subject.repository}?{query}", subject.password)


def test_a_repository_without_encryption_has_no_password(tmp_path: Path) -> None:
    disk = write_disk(tmp_path / "disk.raw")
    borg(tmp_path, "", "init", "--encryption=none", "plain")
    borg(tmp_path, "", "create", "plain::a", "disk.raw")
    source = open_source(f"borg://{tmp_path}/plain?archive=a&path=/disk.raw", None)
    assert source.read(0, source.size) == disk.read_bytes()
    source.close()
    with pytest.raises(DeniedError):
        open_source(f"borg://{tmp_path}/plain?archive=a&path=/disk.raw", tmp_path / "no-password")
