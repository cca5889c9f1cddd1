"""Copies in a second repository: whole, once, gone on with after a kill; append-only repositories lose nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemount.cli.copy import copy as copy_command
from livemount.core.errors import ConflictError, CorruptError, DeniedError, UsageError
from livemount.core.machine import Copy, MachineDescription
from livemount.core.secrets import write_secret
from livemount.media.disks import Changes, DiskInput
from livemount.media.repository import Repository, Rules, Wanted

CHUNK = 512 << 10
MIB = 1 << 20


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_secret(path, "correct horse")
    return path


@pytest.fixture
def other_password(tmp_path: Path) -> Path:
    path = tmp_path / "other-password"
    write_secret(path, "battery staple")
    return path


@pytest.fixture
def repository(tmp_path: Path, password: Path) -> Repository:
    return Repository.init(tmp_path / "repository", password)


@pytest.fixture
def other(tmp_path: Path, other_password: Path) -> Repository:
    return Repository.init(tmp_path / "other", other_password)


def image(path: Path, seed: int, chunks: int = 6) -> Path:
    """Every other chunk is the same whatever the seed, the last one a hole."""
    parts = [random.Random(n if n % 2 else f"{seed} {n}").randbytes(CHUNK) for n in range(chunks - 1)]
    path.write_bytes(b"".join(parts) + bytes(CHUNK))
    return path


def told(copy: Copy) -> tuple[object, ...]:
    """What a copy is, wherever it lies."""
    return copy.name, copy.time, copy.size, copy.stored, copy.description


def test_a_copy_is_the_same_in_the_other_repository(repository: Repository, other: Repository, tmp_path: Path) -> None:
    disks = [DiskInput(image(tmp_path / f"{n}.raw", n)) for n in range(2)]
    made = repository.make(disks, "web", MachineDescription(system="Debian"), wanted=Wanted(boot=1, tags=("nightly",)))
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "hostname").write_text("db")
    repository.make_files(tree, "db")
    copies = repository.copies()
    steps: list[tuple[int, int]] = []
    done = repository.copy_to(other, copies, lambda read, total: steps.append((read, total)))
    assert [each.now for each in done.copies] == [True, True]
    assert steps[-1] == (done.read, done.read)
    assert done.added > 0
    there = other.copies()
    assert [told(copy) for copy in there] == [told(copy) for copy in copies]
    assert [copy.id for copy in there] == [each.copy_id for each in done.copies]
    for disk in range(2):
        assert other.digest(other.find("web"), disk) == repository.digest(made.copy, disk)
    report = other.check(read_percent=100)
    assert report.ok
    assert not report.leftovers


def test_what_is_there_is_not_copied_again(repository: Repository, other: Repository, tmp_path: Path) -> None:
    first = repository.backup(image(tmp_path / "web.raw", 1), "web")
    repository.copy_to(other, [first])
    second = repository.backup(image(tmp_path / "web.raw", 2), "web")
    done = repository.copy_to(other, [first, second, second])
    assert [each.now for each in done.copies] == [False, True, False]
    assert done.copies[1].copy_id == done.copies[2].copy_id
    # Three of six chunks differ.
    assert 3 * CHUNK <= done.read < 4 * CHUNK
    again = repository.copy_to(other, [first, second])
    assert (again.read, again.added) == (0, 0)
    assert len(other.copies()) == 2


def test_a_copy_of_a_copy_is_not_copied_back(
    repository: Repository, other: Repository, tmp_path: Path, password: Path
) -> None:
    copy = repository.backup(image(tmp_path / "web.raw", 1), "web")
    repository.copy_to(other, [copy])
    third = Repository.init(tmp_path / "third", password)
    other.copy_to(third, other.copies())
    assert [each.now for each in other.copy_to(repository, other.copies()).copies] == [False]
    assert [each.now for each in repository.copy_to(third, [copy]).copies] == [False]


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_any_runs_leave_what_was_asked_for(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("copy")
    password = folder / "password"
    write_secret(password, "p")
    repository, other = (Repository.init(folder / name, password) for name in ("one", "two"))
    copies = [repository.backup(image(folder / "d.raw", seed % 3, 3), f"m{seed % 2}") for seed in range(4)]
    asked: set[str] = set()
    for _ in range(data.draw(st.integers(1, 3))):
        chosen = data.draw(st.lists(st.sampled_from(copies), min_size=1, max_size=4))
        done = repository.copy_to(other, chosen)
        new = {copy.id for copy in chosen} - asked
        assert sum(each.now for each in done.copies) == len(new)
        asked |= new
    wanted = [told(copy) for copy in repository.copies() if copy.id in asked]
    assert [told(copy) for copy in other.copies()] == wanted
    assert other.check(read_percent=100).ok


KILLED = """
import os, signal, sys
from pathlib import Path
from livemount.media.repository import Repository

def progress(read, total):
    if any(Path(sys.argv[2], "index").iterdir()):
        os.kill(os.getpid(), signal.SIGKILL)

one, two = (Repository.open(Path(path), Path(sys.argv[3])) for path in sys.argv[1:3])
one.copy_to(two, one.copies(), progress, checkpoint=1)
"""


def test_a_killed_run_is_gone_on_with(repository: Repository, tmp_path: Path, password: Path) -> None:
    other = Repository.init(tmp_path / "other", password)
    disk = tmp_path / "big.raw"
    disk.write_bytes(random.Random(5).randbytes(160 * MIB))
    copy = repository.backup(disk, "big")
    words = [sys.executable, "-c", KILLED, str(repository.path), str(other.path), str(password)]
    killed = subprocess.run(words, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert killed.returncode == -signal.SIGKILL
    assert other.copies() == []
    assert other.check().ok
    done = repository.copy_to(other, [copy])
    assert done.read < 130 * MIB  # a pack has 32
    assert other.digest(other.find("big")) == repository.digest(copy)
    assert other.check(read_percent=100).ok


def test_a_damaged_chunk_ends_it(repository: Repository, other: Repository, tmp_path: Path) -> None:
    copy = repository.backup(image(tmp_path / "web.raw", 1), "web")
    pack = max((repository.path / "data").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(pack.read_bytes())
    content[len(content) // 3] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(content)
    with pytest.raises(CorruptError, match=r"damaged"):
        repository.copy_to(other, [copy])
    assert other.copies() == []


def test_one_and_the_same_repository_is_refused(repository: Repository, tmp_path: Path, password: Path) -> None:
    copy = repository.backup(image(tmp_path / "web.raw", 1), "web")
    link = tmp_path / "link"
    link.symlink_to(repository.path)
    with pytest.raises(ConflictError, match="same repository"):
        repository.copy_to(Repository.open(link, password), [copy])


def test_an_append_only_repository_only_grows(tmp_path: Path, password: Path, repository: Repository) -> None:
    vault = Repository.init(tmp_path / "vault", password, append_only=True)
    vault.backup(image(tmp_path / "web.raw", 1), "web")
    repository.copy_to(vault, [repository.backup(image(tmp_path / "db.raw", 2), "db")])
    vault = Repository.open(vault.path, password)
    vault.backup(image(tmp_path / "web.raw", 3), "web")
    files = sorted(vault.path.rglob("*"))
    for refused in (
        lambda: vault.forget(Rules(keep_last=1)),
        lambda: vault.prune(),
        lambda: vault.prune(plan_only=True, keep_marked=timedelta(0)),
    ):
        with pytest.raises(DeniedError, match="append-only"):
            refused()
    assert sorted(vault.path.rglob("*")) == files
    assert len(vault.copies()) == 3
    assert vault.check(read_percent=100).ok


def test_a_copy_that_proves_wrong_stays_in_an_append_only_repository(tmp_path: Path, password: Path) -> None:
    vault = Repository.init(tmp_path / "vault", password, append_only=True)
    disk = image(tmp_path / "web.raw", 1)
    first = vault.backup(disk, "web")
    image(disk, 2)
    nothing = Changes(since=f"web@{first.id}", ranges=())
    with pytest.raises(CorruptError, match="stays"):
        vault.make([DiskInput(disk, changes=nothing)], "web", wanted=Wanted(verify=True))
    assert len(vault.copies("web")) == 2


def test_the_command_wants_to_know_which_copies() -> None:
    for words in ({"copies": None}, {"copies": ["web"], "everything": True}, {"everything": True, "name": "web"}):
        with pytest.raises(UsageError, match="which copies"):
            copy_command(to="/nowhere", **words)
