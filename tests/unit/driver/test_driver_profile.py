"""Boot profiles on disk, latencies, and the patience with a source that is away."""

from __future__ import annotations

import errno
import logging
import sys
import threading
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from livemount.core.run import run
from livemount.driver.api import Latency, PseudoDiskSpec
from livemount.driver.profile import MOST_CHUNKS, MOST_UNUSED, Profile, profile_path
from livemount.driver.recaller import Recaller

CHUNK = 65536


def profile(tmp_path: Path, name: str = "web01", chunk_size: int = CHUNK) -> Profile:
    """The profile as the next mount finds it."""
    return Profile(profile_path(tmp_path / "recall", name), chunk_size)


def test_the_next_mount_finds_the_order(tmp_path: Path) -> None:
    assert profile(tmp_path).chunks == []
    profile(tmp_path).save([7, 3, 1 << 31], complete=True)
    assert profile(tmp_path).chunks == [7, 3, 1 << 31]
    assert profile(tmp_path, "web02").chunks == []
    assert [path.name for path in (tmp_path / "profiles").iterdir()] == ["web01.profile"]


def test_what_is_no_longer_read_goes_last_and_is_forgotten(tmp_path: Path) -> None:
    profile(tmp_path).save([1, 2, 3], complete=True)
    for _ in range(MOST_UNUSED):
        profile(tmp_path).save([3, 4], complete=True)
        assert profile(tmp_path).chunks == [3, 4, 1, 2]
    profile(tmp_path).save([3, 4], complete=True)
    assert profile(tmp_path).chunks == [3, 4]


def test_a_mount_that_reads_little_makes_nothing_forgotten(tmp_path: Path) -> None:
    profile(tmp_path).save(list(range(100)), complete=True)
    for _ in range(MOST_UNUSED + 2):
        profile(tmp_path).save([50], complete=True)
    assert profile(tmp_path).chunks == [50, *range(50), *range(51, 100)]


def test_one_mount_may_save_often(tmp_path: Path) -> None:
    profile(tmp_path).save([1, 2, 3], complete=True)
    mount = profile(tmp_path)
    for count in range(1, MOST_UNUSED + 4):
        mount.save(list(range(10, 10 + count)), complete=True)
    assert profile(tmp_path).chunks[-3:] == [1, 2, 3]


def test_first_reads_after_a_workers_death_come_last(tmp_path: Path) -> None:
    profile(tmp_path).save([1, 2], complete=True)
    profile(tmp_path).save([9, 2], complete=False)
    assert profile(tmp_path).chunks == [1, 2, 9]


def test_profiles_are_bounded(tmp_path: Path) -> None:
    profile(tmp_path).save(list(range(MOST_CHUNKS + 10)), complete=True)
    assert profile(tmp_path).chunks == list(range(MOST_CHUNKS))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:0],
        lambda content: content[:-1],
        lambda content: content[:-5],
        lambda content: b"X" + content[1:],
        lambda content: content[:20] + bytes([content[20] ^ 1]) + content[21:],
        lambda content: content + bytes(MOST_CHUNKS * 5),
    ],
)
def test_damaged_profiles_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object) -> None:
    assert callable(damage)
    profile(tmp_path).save([1, 2], complete=True)
    path = tmp_path / "profiles" / "web01.profile"
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = profile(tmp_path)
    assert again.chunks == []
    assert "is ignored" in caplog.text
    again.save([5], complete=True)
    assert profile(tmp_path).chunks == [5]


def test_profiles_of_other_chunks_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile(tmp_path).save([1, 2], complete=True)
    with caplog.at_level(logging.INFO):
        assert profile(tmp_path, chunk_size=2 * CHUNK).chunks == []
    assert "its chunks have 65536 bytes" in caplog.text


@pytest.mark.parametrize("name", ["../web01", "", "a/b", "Web"])
def test_names_that_are_no_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError):
        PseudoDiskSpec(id="m", source="file:///a", directory=tmp_path, recall_directory=tmp_path, profile=name)


def test_workers_are_small() -> None:
    """What only the supervisor and a recall need would be in the memory of every idle mount."""
    heavy = "{'pydantic', 'livemount.media.registry', 'livemount.core.machine'}"
    run(sys.executable, "-c", f"import sys, livemount.driver.worker; sys.exit(bool({heavy} & set(sys.modules)))")


def test_quantiles_of_latencies() -> None:
    latency = Latency(seconds=1, buckets=(0, 0, 90, 0, 9, 0, 1))
    assert [latency.quantile(part) for part in (0.5, 0.9, 0.91, 0.99, 1)] == [4e-6, 4e-6, 16e-6, 16e-6, 64e-6]
    assert Latency().quantile(0.5) == 0


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A source that is away."""
    path = tmp_path / "image"
    path.with_name("away").write_bytes(b"d" * 2 * CHUNK)
    return path


def test_recall_waits_for_a_source_that_is_away(image: Path) -> None:
    recaller = Recaller(f"file://{image}", None, 60)
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(recaller(CHUNK, 5, False)))
    reader.start()
    reader.join(0.3)
    assert reader.is_alive()
    with pytest.raises(OSError, match="recall failed") as caught:
        recaller(CHUNK, 5, True)
    assert caught.value.errno == errno.ETIMEDOUT
    image.with_name("away").rename(image)
    reader.join(20)
    assert found == [b"ddddd"]


def test_patience_counts_from_when_the_source_went_away(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recaller = Recaller(f"file://{image}", None, 0.5)
    started = time.monotonic()
    with pytest.raises(OSError, match="recall failed") as caught:
        recaller(0, 5, False)
    assert caught.value.errno == errno.ETIMEDOUT
    assert time.monotonic() - started >= 0.5
    # It is over for all: this one does not wait again.
    waits: list[float] = []
    monkeypatch.setattr(recaller._stopped, "wait", waits.append)
    with pytest.raises(OSError, match="recall failed"):
        recaller(0, 5, False)
    assert waits == []


def test_stopping_ends_the_wait(image: Path) -> None:
    recaller = Recaller(f"file://{image}", None, 3600)
    failures: list[int | None] = []

    def read() -> None:
        try:
            recaller(0, 5, False)
        except OSError as error:
            failures.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(0.2)
    assert reader.is_alive()
    recaller.stop()
    reader.join(20)
    assert failures == [errno.ETIMEDOUT]
