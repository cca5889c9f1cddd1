"""Damage is found, named, and does not spread: what is whole stays readable."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from livemount.core.errors import CorruptError, DeniedError
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.repository import Repository

CHUNK = 512 << 10


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    rewrite(file, bytes(data))


def cut(file: Path) -> None:
    rewrite(file, file.read_bytes()[:100])


def empty(file: Path) -> None:
    rewrite(file, b"")


def rewrite(file: Path, data: bytes) -> None:
    file.unlink()
    file.write_bytes(data)


class Vault:
    """A repository of two copies that share nothing, and so have index files of their own."""

    def __init__(self, folder: Path) -> None:
        self.password = folder / "password"
        write_secret(self.password, "p")
        self.path = folder / "repository"
        self.repository = Repository.init(self.path, self.password)
        self.images = []
        self.files = []
        self.copies = []
        for number in range(2):
            image = folder / f"{number}.raw"
            image.write_bytes(random.Random(number).randbytes(4 * CHUNK))
            before = set(self.path.rglob("*"))
            self.copies.append(self.repository.backup(image, f"web0{number}"))
            self.images.append(image)
            self.files.append(set(self.path.rglob("*")) - before)

    def file(self, number: int, kind: str) -> Path:
        """The (largest) file of a kind that a backup made."""
        found = [file for file in self.files[number] if file.is_file() and file.relative_to(self.path).parts[0] == kind]
        return max(found, key=lambda file: file.stat().st_size)

    def whole(self, number: int) -> bool:
        source = open_source(self.copies[number].source, self.password)
        return source.read(0, source.size) == self.images[number].read_bytes()


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path)


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_damaged_pack(vault: Vault, damage: Callable[[Path], None]) -> None:
    pack = vault.file(0, "data")
    source = open_source(vault.copies[0].source, vault.password)
    assert vault.repository.check(read_percent=100).ok
    damage(pack)
    with pytest.raises(CorruptError, match=pack.name):
        source.read(0, source.size)
    with pytest.raises(CorruptError, match=pack.name):
        vault.repository.digest(vault.copies[0])
    assert vault.whole(1)
    report = vault.repository.check(read_percent=100)
    assert not report.ok
    assert any(pack.name[:8] in problem for problem in report.problems)
    # A flipped byte shows only when the data is read; a wrong size shows at once.
    assert vault.repository.check().ok == (damage is flip)


def test_chunks_are_checked_against_their_ids(vault: Vault) -> None:
    """A chunk whose MAC is right but which is another chunk: only its hash tells."""
    pack = vault.file(0, "data")
    data = pack.read_bytes()
    length = CHUNK + 32  # noise does not compress: plain chunks, one behind the other
    rewrite(pack, data[length : 2 * length] + data[:length] + data[2 * length :])
    source = open_source(vault.copies[0].source, vault.password)
    with pytest.raises(CorruptError, match="does not fit its id"):
        source.read(0, source.size)


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_index_file(vault: Vault, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    index = vault.file(0, "index")
    damage(index)
    assert vault.whole(1)
    with pytest.raises(CorruptError, match=index.name):
        open_source(vault.copies[0].source, vault.password)
    with pytest.raises(CorruptError, match=index.name):
        vault.repository.backup(vault.images[0], "web00")
    report = vault.repository.check()
    assert not report.ok
    assert any(index.name in problem for problem in report.problems)
    assert len(vault.repository.copies()) == 2


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_snapshot_does_not_hide_the_others(
    vault: Vault, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = vault.file(0, "snapshots")
    damage(snapshot)
    assert vault.repository.copies() == [vault.copies[1]]
    assert snapshot.name in caplog.text
    assert [snapshot.name in reason for reason in vault.repository.listing().damaged] == [True]
    assert vault.whole(1)
    with pytest.raises(CorruptError, match=snapshot.name):
        open_source(vault.copies[0].source, vault.password)
    report = vault.repository.check()
    assert any(snapshot.name in problem for problem in report.problems)


@pytest.mark.parametrize("damage", [flip, cut, empty])
def test_a_damaged_key_or_config(vault: Vault, damage: Callable[[Path], None]) -> None:
    (key,) = (vault.path / "keys").iterdir()
    config = vault.path / "config"
    for file in (key, config):
        original = file.read_bytes()
        damage(file)
        with pytest.raises(CorruptError) as raised:
            Repository.open(vault.path, vault.password)
        assert str(file if file == key else vault.path) in str(raised.value)
        rewrite(file, original)
    assert vault.whole(0)
    key.unlink()
    with pytest.raises(DeniedError):
        Repository.open(vault.path, vault.password)
