"""Logical volumes: what the real lvs tells of real ones, which are never active, as that takes device-mapper."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.core.errors import (
    ConflictError,
    CorruptError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.media import open_source
from livemount.media.sources import lvm
from tests.support.foreign_lvm import LvsStandInSubject, RealVolumes

pytestmark = pytest.mark.integration


@pytest.fixture
def volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealVolumes]:
    (tmp_path / "lvm").mkdir()
    made = RealVolumes(tmp_path / "lvm")
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    yield made
    made.close()


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[LvsStandInSubject]:
    made = LvsStandInSubject(tmp_path)
    yield made
    made.close_all()


def test_the_real_lvs_is_understood(volumes: RealVolumes) -> None:
    volumes.add("web01-copy", "r")
    facts = lvm.look(volumes.group, "web01-copy")
    assert (facts["lv_size"], facts["lv_attr"][:2]) == (str(4 << 20), "-r")
    assert facts["lv_path"] == f"/dev/{volumes.group}/web01-copy"
    with pytest.raises(UnavailableError, match="not active"):
        open_source(f"lvm:///{volumes.group}/web01-copy", None)
    for missing in (f"{volumes.group}/web02", "nonesuch/web01-copy"):
        with pytest.raises(NotFoundError):
            open_source(f"lvm:///{missing}", None)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"lv_attr": "-wi-a-----"}, UnsupportedError),  # neither a snapshot nor read-only
        ({"lv_attr": "owi-aos---", "origin": ""}, UnsupportedError),  # it has snapshots
        ({"lv_attr": "swi-I-s---", "origin": "web"}, CorruptError),  # its space ran out
        ({"lv_attr": "Swi-a-s---", "origin": "web"}, UnsupportedError),  # it goes back into its origin
        ({"lv_attr": "sri---s---", "origin": "web"}, UnavailableError),  # not active
        ({"lv_attr": "Vwi-a-tz--"}, UnsupportedError),  # thin, and no snapshot
        ({"lv_attr": "Vri-a-tzF-"}, CorruptError),  # its pool failed
        ({"lv_size": "1048576"}, UnsupportedError),  # another device
        ({"lv_path": "/dev/null"}, UnsupportedError),
        ({"lv_path": "/nonexistent"}, NotFoundError),
        ({"lv_name": "other"}, UnsupportedError),
    ],
)
def test_what_may_change_or_is_broken_is_refused(
    volume: LvsStandInSubject, changed: dict[str, str], error: type[Exception]
) -> None:
    volume.report(**changed)
    with pytest.raises(error):
        volume.open()


@pytest.mark.parametrize("attributes", ["sri-a-s---", "Vwi-a-tz-k", "swi-a-s---"])
def test_snapshots_are_read(volume: LvsStandInSubject, attributes: str) -> None:
    volume.report(lv_attr=attributes, origin="web")
    assert volume.open().read(0, 4096) == volume.content[:4096]


def test_a_snapshot_that_somebody_may_write_to_is_refused(volume: LvsStandInSubject, tmp_path: Path) -> None:
    subprocess.run(["mkfs.ext4", "-q", "-F", tmp_path / "disk.raw"], check=True)
    volume.serve(tmp_path / "disk.raw")
    volume.report(lv_attr="swi-aos---", origin="web")
    volume.open()  # it was open, but not mounted
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", "-o", "ro,noload", volume.device, tmp_path / "mnt"], check=True)
    try:
        with pytest.raises(ConflictError):
            volume.open()
    finally:
        subprocess.run(["umount", tmp_path / "mnt"], check=True)


@pytest.mark.parametrize("path", ["/vg0", "/vg0/web01/x", "/-vg/web01", "/vg0/--help", "/vg0/a@b", "/vg0/web01?x=1"])
def test_names_that_lvm_has_not_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        open_source(f"lvm://{path}", None)


@pytest.mark.parametrize("output", [b"", b"[]", b"{}", b'{"report": [{"lv": []}]}', b'{"report": [{"lv": [{}, {}]}]}'])
def test_reports_that_are_none_are_refused(output: bytes) -> None:
    with pytest.raises(UnsupportedError):
        lvm.parse(output, "vg0", "web01")
