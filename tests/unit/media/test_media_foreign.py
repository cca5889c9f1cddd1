"""A copy made of a source: its machine as the user says, else as the disk tells."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from livemount.core.errors import NotFoundError, UsageError
from livemount.core.machine import Firmware, MachineDescription
from livemount.media import open_source
from livemount.media.foreign import Wanted, copy_of_sources
from livemount.media.registry import named

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    subprocess.run(["sgdisk", "-n", "1:2048:+1M", "-t", "1:ef00", path], check=True, capture_output=True)
    return path


def test_the_machine_is_what_was_said_and_what_the_disk_tells(image: Path) -> None:
    copy = copy_of_sources([f"file://{image}"], None, "web01", Wanted(memory_mib=2048))
    assert copy.description == MachineDescription(firmware=Firmware.UEFI, cpus=1, memory_mib=2048)
    assert (copy.name, copy.size, copy.source) == ("web01", 8 * MIB, f"file://{image}")
    assert 0 < copy.stored < MIB
    assert copy.id == open_source(copy.source, None).identity
    said = copy_of_sources([f"file://{image}"], None, "web01", Wanted(Firmware.BIOS, cpus=2))
    assert said.description == MachineDescription(firmware=Firmware.BIOS, cpus=2)


def test_what_is_no_source_or_name_is_refused(tmp_path: Path, image: Path) -> None:
    with pytest.raises(NotFoundError):
        copy_of_sources([f"file://{tmp_path}/missing"], None, "web01", Wanted())
    with pytest.raises(UsageError, match="cannot name a machine"):
        copy_of_sources([f"file://{image}"], None, "Web 01", Wanted())


def test_a_mount_of_nbd_has_an_identity_of_its_own() -> None:
    first, second = (named("nbd://host/web01") for _ in range(2))
    assert first != second
    assert first.startswith("nbd://host/web01?identity=")
    assert named("nbd+unix:///?socket=/s").startswith("nbd+unix:///?socket=/s&identity=")
    for kept in ("nbd://host/web01?identity=1", "file:///a"):
        assert named(kept) == kept
