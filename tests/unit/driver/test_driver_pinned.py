"""Pins of mounts: one whose repository is away goes later, and never the pin of a mount that came after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemount.core.errors import NotFoundError, UnavailableError
from livemount.core.secrets import write_secret
from livemount.driver import pinned
from livemount.driver.pinned import Pinned
from livemount.media.repository import Repository
from tests.support.foreign import write_disk


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    write_secret(tmp_path / "password", "secret")
    return Repository.init(tmp_path / "repository", tmp_path / "password")


def test_a_pin_goes_when_its_repository_is_back(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = [repository.backup(write_disk(tmp_path / f"{name}.raw"), name) for name in ("web01", "web02")]
    source, password = copies[0].source, tmp_path / "password"
    pins = Pinned(tmp_path / "unpin")
    with pytest.raises(NotFoundError):
        pins.pin(source.replace(copies[0].id, "0" * 64), "m", "a mount", password)
    pins.pin(source, "m", "a mount", password)

    def away(*_: object) -> None:
        raise UnavailableError("away")

    with monkeypatch.context() as patched:
        patched.setattr(pinned, "unpin_source", away)
        pins.unpin(source, "m", password)
    assert list(repository.pins.all()) == [copies[0].id]
    # Another copy of that repository is mounted by the same name before it was tried again.
    pins.pin(copies[1].source, "m", "a mount", password)
    assert list((tmp_path / "unpin").iterdir()) == []
    assert list(repository.pins.all()) == [copies[1].id]
    with monkeypatch.context() as patched:
        patched.setattr(pinned, "unpin_source", away)
        pins.unpin(copies[1].source, "m", password)
    for path in (tmp_path / "unpin").iterdir():
        pins._take_away(path)
    assert repository.pins.all() == {}
    assert list((tmp_path / "unpin").iterdir()) == []
