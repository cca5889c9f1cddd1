"""Old copies are forgotten by rules, never one that is pinned; prune gives the room back and no reader notices."""

from __future__ import annotations

import random
import shutil
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from livemount.core.errors import ConflictError, CorruptError, LivemountError, NotFoundError, UsageError
from livemount.core.machine import Copy
from livemount.core.secrets import write_secret
from livemount.media.pins import Lock, mount_holder
from livemount.media.registry import open_source, pin_source, unpin_source
from livemount.media.repository import Repository, Rules

CHUNK = 512 << 10
AT_ONCE = timedelta(0)


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    write_secret(path, "correct horse")
    return path


@pytest.fixture
def repository(tmp_path: Path, password: Path) -> Repository:
    return Repository.init(tmp_path / "repository", password)


def back_up(repository: Repository, folder: Path, name: str, seed: int, chunks: int = 16) -> tuple[Copy, bytes]:
    """A copy of random bytes; every other chunk is the same whatever the seed."""
    parts = [random.Random(n if n % 2 else (seed, n).__repr__()).randbytes(CHUNK) for n in range(chunks)]
    image = folder / f"{name}.raw"
    image.write_bytes(b"".join(parts))
    return repository.backup(image, name), b"".join(parts)


def packed(repository: Repository) -> int:
    return sum(file.stat().st_size for file in (repository.path / "data").rglob("*") if file.is_file())


def test_rules_keep_the_newest_of_each_machine(repository: Repository, tmp_path: Path) -> None:
    web = [back_up(repository, tmp_path, "web", seed)[0] for seed in range(3)]
    database, _ = back_up(repository, tmp_path, "db", 9)
    planned = repository.forget(Rules(keep_last=1), plan_only=True)
    assert [(each.copy.id, each.kept) for each in planned] == [
        (web[0].id, False),
        (web[1].id, False),
        (web[2].id, True),
        (database.id, True),
    ]
    assert len(repository.copies()) == 4
    assert planned == repository.forget(Rules(keep_last=1))
    assert [copy.id for copy in repository.copies()] == [web[2].id, database.id]


def test_rules_apply_to_the_machine_that_was_named(repository: Repository, tmp_path: Path) -> None:
    for seed in range(2):
        back_up(repository, tmp_path, "web", seed)
        back_up(repository, tmp_path, "db", seed)
    repository.forget(Rules(keep_last=1), "db")
    assert [copy.name for copy in repository.copies()] == ["web", "web", "db"]


@pytest.mark.parametrize("rules", [Rules(), Rules(keep_within="soon"), Rules(keep_last=0)])
def test_rules_that_keep_nothing_or_mean_nothing_are_refused(
    repository: Repository, tmp_path: Path, rules: Rules
) -> None:
    back_up(repository, tmp_path, "web", 1)
    with pytest.raises(UsageError):
        repository.forget(rules)
    assert len(repository.copies()) == 1


def test_a_pinned_copy_is_not_forgotten(repository: Repository, tmp_path: Path) -> None:
    old, _ = back_up(repository, tmp_path, "web", 1)
    new, _ = back_up(repository, tmp_path, "web", 2)
    holder = mount_holder(tmp_path, "m1")
    pin_source(old.source, holder, "the mount m1 on lm1")
    decisions = repository.forget(Rules(keep_last=1))
    assert [(each.copy.id, each.kept, each.reasons) for each in decisions] == [
        (old.id, True, ["the mount m1 on lm1"]),
        (new.id, True, ["last"]),
    ]
    unpin_source(old.source, holder)
    unpin_source(old.source, holder)
    repository.forget(Rules(keep_last=1))
    assert [copy.id for copy in repository.copies()] == [new.id]
    with pytest.raises(NotFoundError):
        pin_source(old.source, holder, "too late")
    assert repository.pins.all() == {}


def test_a_repository_that_we_never_wrote_to_stays_as_it_is(repository: Repository, tmp_path: Path) -> None:
    copy, _ = back_up(repository, tmp_path, "web", 1, chunks=2)
    shutil.rmtree(repository.path / "livemount")
    pin_source(copy.source, "m", "a mount")
    unpin_source(copy.source, "m")
    assert not (repository.path / "livemount").exists()


def test_the_first_digits_of_a_snapshot_pin_it(repository: Repository, tmp_path: Path) -> None:
    copy, _ = back_up(repository, tmp_path, "web", 1, chunks=2)
    pin_source(copy.source.replace(copy.id, copy.id[:8]), "m", "a mount")
    assert list(repository.pins.all()) == [copy.id]


def test_a_damaged_pin_stops_forgetting(repository: Repository, tmp_path: Path) -> None:
    old, _ = back_up(repository, tmp_path, "web", 1)
    back_up(repository, tmp_path, "web", 2)
    pin_source(old.source, "m", "a mount")
    (repository.path / "livemount" / "pins" / "m.json").write_text("{")
    with pytest.raises(CorruptError, match=r"m\.json"):
        repository.forget(Rules(keep_last=1))
    assert len(repository.copies()) == 2


def test_what_is_pinned_or_forgotten_at_once_is_one_of_both(repository: Repository, tmp_path: Path) -> None:
    """The race: a pin that was granted holds, one that comes too late is refused."""
    copies = [back_up(repository, tmp_path, "web", seed, chunks=2)[0] for seed in range(12)]
    granted: list[str] = []
    start = threading.Barrier(len(copies) + 1)

    def pin(copy: Copy) -> None:
        start.wait()
        try:
            pin_source(copy.source, f"m-{copy.id[:8]}", "a mount")
        except NotFoundError:
            return
        granted.append(copy.id)

    threads = [threading.Thread(target=pin, args=(copy,)) for copy in copies]
    for thread in threads:
        thread.start()
    start.wait()
    repository.forget(Rules(keep_last=1))
    for thread in threads:
        thread.join()
    left = {copy.id for copy in repository.copies()}
    assert set(granted) <= left
    assert left == {*granted, copies[-1].id}


def test_prune_gives_the_room_back_in_two_steps(repository: Repository, tmp_path: Path) -> None:
    back_up(repository, tmp_path, "web", 1)
    new, content = back_up(repository, tmp_path, "web", 2)
    full = packed(repository)
    repository.forget(Rules(keep_last=1))
    planned = repository.prune(plan_only=True, max_unused=0)
    assert planned.marked > 0
    assert packed(repository) == full
    repository.prune(max_unused=0)
    assert repository.prune(max_unused=0).deleted == 0, "marked just now"
    repository.prune(max_unused=0, keep_marked=AT_ONCE)
    assert packed(repository) < full * 0.75
    assert repository.check(read_percent=100).problems == []
    source = open_source(new.source, tmp_path / "password")
    assert source.read(0, source.size) == content


def test_a_reader_goes_on_while_its_packs_are_repacked(repository: Repository, tmp_path: Path) -> None:
    """What an open disk knows of packs is out of date after a prune that deletes at once: it looks again."""
    back_up(repository, tmp_path, "web", 1)
    new, content = back_up(repository, tmp_path, "web", 2)
    source = open_source(new.source, tmp_path / "password")
    assert source.read(0, CHUNK) == content[:CHUNK]
    repository.forget(Rules(keep_last=1))
    before = set((repository.path / "data").rglob("*"))
    repository.prune(max_unused=0)
    repository.prune(max_unused=0, keep_marked=AT_ONCE)
    assert before - set((repository.path / "data").rglob("*")), "nothing was deleted"
    wrong: list[object] = []

    def read(number: int) -> None:
        try:
            for at in range(0, len(content), CHUNK):
                if source.read(at, CHUNK) != content[at : at + CHUNK]:
                    wrong.append(at)
        except LivemountError as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_backups_and_prunes_wait_for_each_other(repository: Repository, tmp_path: Path) -> None:
    with (
        repository.pins.locked(Lock.PACKS, alone=False),
        pytest.raises(ConflictError, match="a backup is being made"),
        repository.pins.locked(Lock.PACKS, alone=True, patience=0),
    ):
        pass
    with (
        repository.pins.locked(Lock.PACKS, alone=True),
        pytest.raises(ConflictError, match="it is being pruned"),
        repository.pins.locked(Lock.PACKS, alone=False, patience=0),
    ):
        pass
    back_up(repository, tmp_path, "web", 1)


def test_a_damaged_snapshot_stops_a_prune(repository: Repository, tmp_path: Path) -> None:
    """What it needs is not known: deleting the rest of it would make a damage a loss."""
    old, _ = back_up(repository, tmp_path, "web", 1)
    back_up(repository, tmp_path, "web", 2)
    full = packed(repository)
    (repository.path / "snapshots" / old.id).write_bytes(b"damage")
    with pytest.raises(CorruptError, match="snapshot"):
        repository.prune(max_unused=0, keep_marked=AT_ONCE)
    assert packed(repository) == full
