"""A backup that fails or is killed leaves a repository that is clean, and no copy."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from livemount.core.errors import NoSpaceError, UnavailableError
from livemount.core.machine import MachineDescription
from livemount.core.secrets import write_secret
from livemount.media.repository import Repository

pytestmark = pytest.mark.integration

MIB = 1 << 20


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_secret(path, "correct horse")
    return path


def restic_check(repository: Path, password: Path) -> str:
    """restic's own check; packs that no index names are no error for it either."""
    words: list[str | Path] = [
        "restic",
        "--repo",
        repository,
        "--password-file",
        password,
        "--no-cache",
        "check",
        "--read-data",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


KILLED = """
import os, signal, sys
from pathlib import Path
from livemount.media.repository import Repository

repository = Repository.open(Path(sys.argv[1]), Path(sys.argv[2]))

def progress(done, total):
    if done < total and any(file.is_file() for file in (repository.path / "data").rglob("*")):
        os.kill(os.getpid(), signal.SIGKILL)

repository.backup(Path(sys.argv[3]), "web01", progress=progress)
"""


def test_a_killed_backup_leaves_no_copy(tmp_path: Path, password: Path) -> None:
    image = tmp_path / "web01.raw"
    with image.open("wb") as file:
        for _ in range(4):
            file.write(os.urandom(64 * MIB))
    repository = Repository.init(tmp_path / "repository", password)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, repository.path, password, image], check=False, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert repository.copies() == []
    report = repository.check(read_percent=100)
    assert report.ok
    assert report.leftovers  # the packs it had written
    assert "no errors were found" in restic_check(repository.path, password)
    copy = repository.backup(image, "web01")
    assert repository.copies() == [copy]
    assert "no errors were found" in restic_check(repository.path, password)


@contextmanager
def failing_image(folder: Path, size: int) -> Iterator[Path]:
    """An image, in a FUSE file system, whose every read fails with EIO."""
    image = folder / "failing.raw"
    image.touch()
    server = f"nbdkit --exit-with-parent --filter=error memory {size} error-pread=EIO error-pread-rate=100%"
    with subprocess.Popen(["nbdfuse", image, "[", *server.split(), "]"], stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 60
            while image.stat().st_size != size:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield image
        finally:
            subprocess.run(["umount", image], check=process.poll() is None)
            process.wait(30)


def test_a_read_error_of_the_image_is_raised(tmp_path: Path, password: Path) -> None:
    repository = Repository.init(tmp_path / "repository", password)
    with failing_image(tmp_path, 8 * MIB) as image, pytest.raises(UnavailableError) as raised:
        repository.backup(image, "web01", MachineDescription())
    assert str(image) in str(raised.value)
    assert "Input/output error" in str(raised.value)
    assert repository.copies() == []
    assert repository.check(read_percent=100).ok


def test_a_full_file_system_is_told(tmp_path: Path, password: Path) -> None:
    image = tmp_path / "web01.raw"
    image.write_bytes(random.Random(0).randbytes(96 * MIB))
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", full], check=True)
    try:
        repository = Repository.init(full / "repository", password)
        with pytest.raises(NoSpaceError, match="No space left"):
            repository.backup(image, "web01")
        assert repository.copies() == []
        assert repository.check(read_percent=100).ok
        assert list((full / "repository/tmp").iterdir()) == []
        os.truncate(image, 4 * MIB)
        assert repository.copies() == []
        subprocess.run(["mount", "-o", "remount,size=96m", full], check=True)
        assert repository.backup(image, "web01").size == 4 * MIB
    finally:
        subprocess.run(["umount", full], check=True)
