"""What we write is a restic repository for restic, and what restic writes is a source for us."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from livemount.core.errors import CorruptError
from livemount.core.machine import Copy, Firmware, MachineDescription
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.registry import SourceUri
from livemount.media.repository import Repository

pytestmark = pytest.mark.integration

MIB = 1 << 20
DESCRIPTION = MachineDescription(firmware=Firmware.UEFI, cpus=3)


class Restic:
    """The real restic, on the repository in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "repository"
        self.password = folder / "password"
        write_secret(self.password, "correct horse")

    def run(self, *words: str | Path) -> bytes:
        environment = os.environ | {
            "RESTIC_PASSWORD_FILE": str(self.password),
            "RESTIC_REPOSITORY": str(self.path),
            "RESTIC_CACHE_DIR": str(self.folder / "cache"),
        }
        done = subprocess.run(["restic", *words], env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return done.stdout

    def snapshots(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("snapshots", "--json"))
        return found


@pytest.fixture
def restic(tmp_path: Path) -> Restic:
    return Restic(tmp_path)


@pytest.fixture
def repository(restic: Restic) -> Repository:
    return Repository.init(restic.path, restic.password)


def write_image(path: Path, seed: int = 0) -> Path:
    """64 MiB and a bit: noise that fills more than one pack, text that compresses, zeros and holes."""
    with path.open("wb") as file:
        file.truncate(64 * MIB + 512)
        file.write(random.Random(seed).randbytes(34 * MIB))
        file.write(b"text " * MIB)
        file.seek(50 * MIB + 4096)
        file.write(bytes(2 * MIB))
        file.seek(60 * MIB)
        file.write(b"end")
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_restic_checks_and_reads_what_we_write(restic: Restic, repository: Repository) -> None:
    images = [write_image(restic.folder / f"{seed}.raw", seed) for seed in range(2)]
    copies = [repository.backup(image, "web01", DESCRIPTION) for image in images]
    assert b"no errors were found" in restic.run("check", "--read-data")
    for image, copy in zip(images, copies, strict=True):
        content = restic.run("dump", copy.id, "/web01/disk0.raw")
        assert digest(content) == digest(image.read_bytes()) == repository.digest(copy)
        assert json.loads(restic.run("dump", copy.id, "/web01/machine.json"))["cpus"] == 3
    listed = restic.snapshots()
    assert [entry["id"] for entry in listed] == [copy.id for copy in copies]
    assert all(entry["hostname"] == "web01" and entry["tags"] == ["livemount"] for entry in listed)
    restic.run("restore", copies[0].id, "--target", restic.folder / "restored")
    assert (restic.folder / "restored/web01/disk0.raw").read_bytes() == images[0].read_bytes()


@pytest.mark.parametrize("version", ["1", "2"])
def test_we_read_what_restic_writes(restic: Restic, version: str) -> None:
    image = write_image(restic.folder / "own name.raw")
    restic.run("init", "--repository-version", version)
    restic.run("backup", image)
    (snapshot,) = restic.snapshots()
    uri = SourceUri("restic", restic.path, {"snapshot": snapshot["id"], "file": str(image)})
    source = open_source(str(uri), restic.password)
    content = image.read_bytes()
    assert source.size == len(content)
    choose = random.Random(1)
    for _ in range(200):
        offset = choose.randrange(source.size)
        length = min(choose.randrange(3 * MIB), source.size - offset)
        assert source.read(offset, length) == content[offset : offset + length]
    for extent in source.extents(0, source.size):
        assert not extent.hole or not any(content[extent.offset : extent.offset + extent.length])
    if version == "1":
        return
    # A snapshot of restic's own is a source, but no copy of a machine.
    repository = Repository.open(restic.path, restic.password)
    assert repository.copies() == []
    ours = repository.backup(image, "web01")
    assert repository.copies() == [ours]
    report = repository.check(read_percent=100)
    assert report.problems == report.leftovers == []
    assert b"no errors were found" in restic.run("check", "--read-data")


def test_a_copy_survives_what_restic_does_to_snapshots(restic: Restic, repository: Repository) -> None:
    """restic writes snapshots anew and drops the fields it does not know."""
    image = write_image(restic.folder / "web01.raw")
    before = repository.backup(image, "web01", DESCRIPTION)
    restic.run("tag", "--add", "keep", before.id)
    (after,) = repository.copies()
    assert after.id != before.id

    def facts(copy: Copy) -> tuple[object, ...]:
        return copy.name, copy.time, copy.size, copy.stored, copy.description

    assert facts(after) == facts(before)
    assert repository.digest(after) == digest(image.read_bytes())


def test_what_restic_keeps_when_it_prunes_is_whole(restic: Restic, repository: Repository) -> None:
    images = [write_image(restic.folder / f"{seed}.raw", seed) for seed in range(3)]
    copies = [repository.backup(image, f"web0{number}") for number, image in enumerate(images)]
    restic.run("forget", "--prune", copies[0].id, copies[1].id)
    again = Repository.open(restic.path, restic.password)
    assert again.copies() == [copies[2]]
    assert again.digest(copies[2]) == digest(images[2].read_bytes())
    report = again.check(read_percent=100)
    assert report.problems == report.leftovers == []


def test_a_block_device_is_backed_up(restic: Restic, repository: Repository) -> None:
    image = write_image(restic.folder / "web01.raw")
    device = subprocess.run(
        ["losetup", "--find", "--show", "--read-only", image], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        copy = repository.backup(Path(device), "web01")
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
    assert copy == repository.find("web01")
    assert repository.digest(copy) == digest(image.read_bytes())
    assert copy.stored == repository.backup(image, "web01").stored


def test_restic_mends_a_damaged_index(restic: Restic, repository: Repository) -> None:
    image = write_image(restic.folder / "web01.raw")
    copy = repository.backup(image, "web01")
    (index,) = (restic.path / "index").iterdir()
    index.unlink()
    index.write_bytes(b"damaged")
    with pytest.raises(CorruptError, match=index.name):
        open_source(copy.source, restic.password)
    restic.run("rebuild-index")
    assert repository.digest(copy) == digest(image.read_bytes())
