"""The figures of the boot bench, and its restore."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from bench.boot import PLAIN, RESTORED, SECOND, Booted, compare, first_mount, restore, with_profile
from bench.hits import MIB
from livemount.driver.api import PseudoDiskStats
from livemount.media.sources.file import RawImage


def booted(boot: float, recalled: int = 0, ready: float = 1) -> Booted:
    stats = PseudoDiskStats(
        size=20480 * MIB,
        private_bytes=0,
        recalled_bytes=recalled,
        recall_store_bytes=recalled,
        reads=1,
        writes=0,
        read_errors=0,
        worker_restarts=0,
    )
    return Booted(ready, boot, stats)


ROUND = {
    PLAIN: Booted(0, 40),
    RESTORED: Booted(9, 41),
    first_mount(0): booted(44, 100 * MIB),
    SECOND: booted(50),
    with_profile(0): booted(22, 100 * MIB),
    first_mount(20): booted(60, 100 * MIB),
    with_profile(20): booted(30, 100 * MIB),
}


def test_each_variant_is_compared_with_its_peer() -> None:
    figures = {figure.name.removeprefix("boot/"): figure for figure in compare([ROUND, ROUND])}
    assert figures["first mount, 0 ms"].reached
    assert figures["second mount, 0 ms"].reached is False
    assert figures["later copy with profile, 0 ms"].ratio == 2
    assert figures["later copy with profile, 20 ms"].peer == first_mount(20)
    assert figures["request to multi-user, first mount, 0 ms"].ratio == pytest.approx(50 / 45)
    assert figures["recalled, first mount, 0 ms"].ratio == pytest.approx(14.336)
    assert figures["recalled, second mount, 0 ms"].median == 1 / 16


def test_a_restore_has_the_copys_bytes_and_holes(tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
        for at in (0, 9 * MIB, 63 * MIB):
            file.seek(at)
            file.write(bytes(range(256)) * 4096)
    with closing(RawImage(image)) as source:
        restored = restore(source, tmp_path / "restored.raw")
    assert restored.read_bytes() == image.read_bytes()
    assert restored.stat().st_blocks * 512 <= 16 * MIB
