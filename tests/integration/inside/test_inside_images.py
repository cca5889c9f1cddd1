"""The system on an image, opened as a folder and copied: the same files, the image unchanged, nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from livemount.cli.main import app
from livemount.core.errors import LivemountError, NotFoundError, UnsupportedError
from livemount.core.machine import MachineDescription
from livemount.core.run import run
from livemount.core.secrets import write_secret
from livemount.inside.api import opened
from livemount.inside.describe import described
from livemount.media.disks import DiskInput
from livemount.media.repository import Repository
from tests.support.trees import facts, mounted, write_tree

pytestmark = pytest.mark.integration

MIB = 1 << 20
ROOT_START, BOOT_START, HOME_START, END = (each * MIB for each in (1, 97, 105, 113))
PARTS = (("", ROOT_START, BOOT_START), ("boot", BOOT_START, HOME_START), ("home", HOME_START, END))
"""Mount point, first byte and end of each."""
OTHER = "5a1b6a5e-0000-4000-8000-000000000001"


def write_system(root: Path) -> Path:
    """A tree that looks like a system's root."""
    write_tree(root)
    for name in ("boot", "home", "data", "lost+found"):
        (root / name).mkdir(mode=0o700)
    (root / "etc/os-release").write_text('PRETTY_NAME="A small Linux"\n')
    (root / "etc/fstab").write_text(
        f"LABEL=root / ext4 defaults 0 1\nLABEL=boot /boot ext4 defaults 0 2\n/dev/sda3 /home ext4 defaults 0 2\n"
        f"UUID={OTHER} /data ext4 defaults 0 2\ntmpfs /tmp tmpfs defaults 0 0\n"
    )
    return root


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trees")
    found = {"root": write_system(folder / "root"), "boot": folder / "boot", "home": folder / "home"}
    for name in ("boot", "home"):
        (found[name] / "lost+found").mkdir(parents=True)
        (found[name] / f"of-{name}").write_text(name)
        os.link(found[name] / f"of-{name}", found[name] / "again")
    return found


@pytest.fixture(scope="module")
def made(trees: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk with a root, a /boot and a /home."""
    disk = tmp_path_factory.mktemp("made") / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(END + MIB)
    words = [f"--new={number}:{start // 512}:{end // 512 - 1}" for number, (_, start, end) in enumerate(PARTS, 1)]
    run("sgdisk", *words, disk)
    for name, start, end in PARTS:
        label = name or "root"
        how = ["-q", "-t", "ext4", "-L", label, "-E", f"offset={start}", "-d"]
        run("mke2fs", *how, trees[label], disk, f"{(end - start) >> 10}k")
    return disk


@pytest.fixture
def disk(made: Path, tmp_path: Path) -> Path:
    run("cp", "--sparse=always", made, tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """No mount, loop device or file of ours is there afterwards."""
    yield
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    deadline = time.monotonic() + 60
    while helpers(tmp_path):
        assert time.monotonic() < deadline, "processes stay"
        time.sleep(0.05)


def helpers(folder: Path) -> list[str]:
    """The processes that have a file below a folder open, but for this one."""
    found = []
    for links in Path("/proc").glob("[0-9]*/fd"):
        if links.parent.name != str(os.getpid()):
            try:
                found += [links.parent.name for link in links.iterdir() if str(link.readlink()).startswith(str(folder))]
            except OSError:
                continue
    return found


def backing(loop: Path) -> str:
    """The file that a loop device shows."""
    try:
        return loop.read_text()
    except OSError:
        return ""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def all_mounted(disk: Path, folder: Path) -> Iterator[Path]:
    """The three file systems, mounted as the fstab says."""
    with ExitStack() as stack:
        for name, start, end in PARTS:
            stack.enter_context(mounted(disk, start, folder / name, end - start))
        yield folder


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_the_files_are_those_of_the_system(kind: str, disk: Path, tmp_path: Path) -> None:
    uri = disk.as_uri()
    if kind == "qcow2":
        run("qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
        uri = f"image://{tmp_path}/disk.qcow2"
    before = digest(disk)
    with opened(uri, None) as image:
        assert image.system == "A small Linux"
        assert image.notes == ("/data is not on this disk: it is not in this copy",)
        with all_mounted(disk, tmp_path / "mnt") as expected:
            assert facts(image.folder) == facts(expected)
        with pytest.raises(OSError, match="Read-only"):
            (image.folder / "new").touch()
    assert digest(disk) == before


def test_a_copy_knows_its_system(disk: Path, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
    before = digest(disk)
    machine = MachineDescription(cpus=3)
    known = MachineDescription(cpus=3, system="A small Linux")
    assert described(machine, DiskInput(disk)) == known
    assert described(machine, DiskInput(f"image://{tmp_path}/disk.qcow2")) == known
    assert digest(disk) == before
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    assert described(machine, DiskInput(tree)) == machine
    (tree / "etc/os-release").write_text("ID=x\nPRETTY_NAME='An \x1b[1m OS'\n")
    assert described(machine, DiskInput(tree)).system == "An [1m OS"
    (tmp_path / "no.raw").write_bytes(bytes(MIB))
    for place in (tmp_path / "no.raw", tmp_path / "missing.raw", f"image://{tmp_path}/missing.qcow2"):
        assert described(machine, DiskInput(place)) == machine
    mine = MachineDescription(system="mine")
    assert described(mine, DiskInput(disk)) == mine


def test_a_volume_without_a_partition_table(trees: dict[str, Path], tmp_path: Path) -> None:
    (trees["boot"] / "etc").mkdir(exist_ok=True)
    (trees["boot"] / "etc/os-release").write_text("NAME=x\n")
    try:
        run("mke2fs", "-q", "-t", "ext4", "-d", trees["boot"], tmp_path / "volume.raw", "8m")
    finally:
        (trees["boot"] / "etc/os-release").unlink()
        (trees["boot"] / "etc").rmdir()
    with opened((tmp_path / "volume.raw").as_uri(), None) as image:
        assert (image.folder / "of-boot").read_text() == "boot"
        assert (image.system, image.notes) == ("Linux", ())


def test_a_journal_is_played_back_beside_the_image(disk: Path, tmp_path: Path) -> None:
    used = tmp_path / "used.raw"
    (tmp_path / "mnt").mkdir()
    run("mount", "-o", f"loop,offset={ROOT_START},sizelimit={BOOT_START - ROOT_START}", disk, tmp_path / "mnt")
    try:
        with (tmp_path / "mnt/just-written").open("w") as file:
            file.write("committed, not yet in place")
            file.flush()
            os.fsync(file.fileno())
        run("cp", "--sparse=always", disk, used)
    finally:
        run("umount", tmp_path / "mnt")
    with mounted(used, ROOT_START, tmp_path / "mnt") as stale:  # without its journal
        assert not (stale / "just-written").exists()
    before = digest(used)
    with opened(used.as_uri(), None) as image:
        assert (image.folder / "just-written").read_text() == "committed, not yet in place"
        assert image.notes[0].startswith("ext4 (partition 1) was in use: its journal was played back")
    assert digest(used) == before


def test_a_copy_of_an_image_is_a_copy_of_its_files(disk: Path, tmp_path: Path) -> None:
    environment = {"LIVEMOUNT_HOME": str(tmp_path / "home"), "LIVEMOUNT_CATALOG": f"sqlite:///{tmp_path}/c.sqlite"}

    def ask(*words: str) -> Any:
        done = CliRunner().invoke(app, [*words, "--output", "json"], env=environment)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert CliRunner().invoke(app, ["repository", "init"], env=environment).exit_code == 0
    first = ask("backup", "--files", str(disk), "--name", "web01")
    assert first["copy"]["description"]["system"] == "A small Linux"
    assert first["copy"]["description"]["disks"][0]["kind"] == "files"
    repository = Repository.open(tmp_path / "home/repository", tmp_path / "home/repository-password")
    for name in ("boot", "home"):
        path = Path("/web01/files0", name, f"of-{name}")
        assert repository._native.read_file(first["copy"]["id"], path, 100) == name.encode()
    assert ask("backup", "--files", disk.as_uri(), "--name", "web01")["read"] == 0
    # The same as of the folders where they are mounted.
    with all_mounted(disk, tmp_path / "mnt"):
        again = ask("backup", "--files", str(tmp_path / "mnt"), "--name", "web01")
    assert again["read"] == 0
    assert again["added"] < 1 << 16
    for words, code in (
        (["backup", "--files", f"{disk}x", "--name", "web01"], 3),
        (["backup", "--files", f"image://{disk}", "--name", "web01"], 2),
        (["backup", "--files", "--verify", str(disk), "--name", "web01"], 2),
    ):
        failure = CliRunner().invoke(app, words, env=environment).exception
        assert isinstance(failure, LivemountError), words
        assert failure.exit_code == code, failure


def test_what_cannot_be_opened_is_said(disk: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.raw"
    empty.write_bytes(bytes(8 * MIB))
    with pytest.raises(UnsupportedError, match="no partition table"), opened(empty.as_uri(), None):
        pass
    with pytest.raises(NotFoundError), opened(f"file://{tmp_path}/missing.raw", None):
        pass
    for start in (ROOT_START, BOOT_START, HOME_START):
        with disk.open("r+b") as file:
            file.seek(start)
            file.write(bytes(4096))
    with pytest.raises(UnsupportedError, match="no Linux on it"), opened(disk.as_uri(), None):
        pass


def test_an_image_that_cannot_be_read_is_no_copy(disk: Path, tmp_path: Path) -> None:
    write_secret(tmp_path / "password", "secret")
    repository = Repository.init(tmp_path / "repository", tmp_path / "password")

    def copy() -> None:
        with opened(disk.as_uri(), None) as image:
            # A raw image that somebody writes to is no source any longer.
            os.utime(disk)
            repository.make_files(image.folder, "web01", across=True)

    with pytest.raises(LivemountError, match=r"cannot read /\S") as caught:
        copy()
    assert "was changed while it was in use" in str(caught.value)
    assert repository.copies() == []


def test_a_killed_backup_leaves_nothing(disk: Path, tmp_path: Path) -> None:
    script = f"""
import sys, time
from livemount.inside.api import opened
with opened({disk.as_uri()!r}, None) as image:
    file = (image.folder / "srv/noise").open("rb")
    file.read(4096)
    print("open", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        (worker, *_) = {pid for pid in helpers(tmp_path) if pid != str(process.pid)}
        lines = Path(f"/proc/{worker}/mountinfo").read_text().splitlines()
        mounts = [line.partition(" - ")[2].split()[1] for line in lines]
        loops = [Path("/sys/block", Path(name).name, "loop/backing_file") for name in mounts if "/dev/loop" in name]
        (shown,) = {backing(loop) for loop in loops}
        assert (len(loops), bool(shown)) == (3, True)
        process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while helpers(tmp_path) or any(backing(loop) == shown for loop in loops):
        assert time.monotonic() < deadline, "something stays"
        time.sleep(0.05)
