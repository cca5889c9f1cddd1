"""Incremental backups by QEMU's dirty bitmaps: of an image at rest, and of one that a running QEMU has open."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from livemount.core.errors import CorruptError, NotFoundError, UnsupportedError, UsageError
from livemount.core.secrets import write_secret
from livemount.media import open_source
from livemount.media.disks import DiskInput
from livemount.media.repository import Repository, Wanted

pytestmark = pytest.mark.integration
MIB = 1 << 20
SIZE = 16 * MIB


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def write_into(image: Path, offset: int, seed: int) -> None:
    """Write 64 KiB of one byte through QEMU, which notes it in the image's bitmaps."""
    subprocess.run(["qemu-io", "-c", f"write -P {seed} {offset} 64k", image], check=True, capture_output=True)


def content(image: Path) -> bytes:
    raw = image.with_suffix(".all")
    qemu_img("convert", "-U", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    raw, image = tmp_path / "web01.raw", tmp_path / "web01.qcow2"
    raw.write_bytes(random.Random(1).randbytes(SIZE))
    qemu_img("convert", "-O", "qcow2", raw, image)
    return image


@pytest.fixture
def password(tmp_path: Path) -> Path:
    write_secret(tmp_path / "password", "p")
    return tmp_path / "password"


@pytest.fixture
def repository(tmp_path: Path, password: Path) -> Repository:
    return Repository.init(tmp_path / "repository", password)


def test_only_what_the_bitmap_of_an_image_names_is_read(repository: Repository, image: Path, password: Path) -> None:
    qemu_img("bitmap", "--add", image, "b1")
    first = repository.make([DiskInput(f"image://{image}")], "web01")
    assert first.read == SIZE
    write_into(image, 5 * MIB, 7)
    subprocess.run(["qemu-io", "-c", "write -z 9M 1M", image], check=True, capture_output=True)
    disk = DiskInput(f"image://{image}?bitmap=b1")
    with pytest.raises(UsageError, match="does not tell"):
        repository.make([disk], "web01")
    with pytest.raises(NotFoundError):
        repository.make([disk], "web01", wanted=Wanted(since="0123456789"))
    made = repository.make([disk], "web01", wanted=Wanted(since=f"web01@{first.copy.id}", verify=True))
    assert made.read == 512 << 10
    source = open_source(made.copy.source, password)
    assert source.read(0, SIZE) == content(image)
    # The name of a bitmap can tell the copy, and is then held to it.
    name = f"livemount-{first.copy.id[:16]}"
    qemu_img("bitmap", "--add", "--merge", "b1", image, name)
    named = DiskInput(f"image://{image}?bitmap={name}")
    assert repository.make([named], "web01").read == 512 << 10
    with pytest.raises(UsageError, match="does not begin with"):
        repository.make([named], "web01", wanted=Wanted(since=made.copy.id))


def test_a_bitmap_that_cannot_be_used_is_refused(repository: Repository, image: Path) -> None:
    copy = repository.make([DiskInput(f"image://{image}")], "web01").copy
    with pytest.raises(NotFoundError, match="no dirty bitmap 'other'"):
        repository.make([DiskInput(f"image://{image}?bitmap=other")], "web01")
    qemu_img("convert", "-O", "vmdk", image, image.with_suffix(".vmdk"))
    with pytest.raises(UnsupportedError):
        open_source(f"image://{image.with_suffix('.vmdk')}?bitmap=b", None)
    qemu_img("bitmap", "--add", image, "b1")
    # QEMU marks a bitmap as in use while it runs, and leaves it so when it is killed.
    with subprocess.Popen(["qemu-io", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write(b"write 0 64k\n")
        qemu.stdin.flush()
        while b"wrote" not in qemu.stdout.readline():
            pass
        qemu.send_signal(signal.SIGKILL)
    with pytest.raises(CorruptError, match="not whole"):
        repository.make([DiskInput(f"image://{image}?bitmap=b1")], "web01", wanted=Wanted(since=copy.id))
    assert repository.copies() == [copy]


class Qemu:
    """A QEMU without a machine, that has an image open."""

    def __init__(self, image: Path, folder: Path) -> None:
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"),
                *("-blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={image}"),
                *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "qmp,mode=control"),
            ],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self._stream = ours.makefile("rwb")
        ours.close()
        self._stream.readline()
        self.ask("qmp_capabilities")
        self.socket = folder / "nbd"
        self.ask("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.socket)}})

    def ask(self, command: str, **arguments: Any) -> Any:
        self._stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        self._stream.flush()
        while True:
            answer = json.loads(self._stream.readline())
            if "event" not in answer:
                assert "error" not in answer, answer
                return answer["return"]

    def end(self) -> None:
        self._stream.close()
        self._process.terminate()
        self._process.wait()


@pytest.fixture
def qemu(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    running = Qemu(image, tmp_path_factory.mktemp("q"))
    yield running
    running.end()


def test_only_what_the_bitmap_of_a_running_qemu_names_is_read(
    repository: Repository, qemu: Qemu, password: Path
) -> None:
    qemu.ask("block-dirty-bitmap-add", node="disk", name="b1", granularity=65536)
    export = {"type": "nbd", "node-name": "disk", "writable": False}
    qemu.ask("block-export-add", id="first", name="first", **export)
    where = f"socket={qemu.socket}"
    first = repository.make([DiskInput(f"nbd+unix:///first?{where}&identity=one")], "web01")
    assert first.read == SIZE
    qemu.ask("human-monitor-command", **{"command-line": 'qemu-io disk "write -P 9 3M 64k"'})
    # What is exported must not move on: the bitmap is frozen as it is at this time.
    qemu.ask("block-dirty-bitmap-add", node="disk", name="frozen", disabled=True)
    qemu.ask("block-dirty-bitmap-merge", node="disk", target="frozen", bitmaps=["b1"])
    qemu.ask("block-export-add", id="second", name="second", bitmaps=["frozen"], **export)
    with pytest.raises(NotFoundError, match="no dirty bitmap"):
        open_source(f"nbd+unix:///second?{where}&identity=two&bitmap=b1", None)
    disk = DiskInput(f"nbd+unix:///second?{where}&identity=two&bitmap=frozen")
    made = repository.make([disk], "web01", wanted=Wanted(since=first.copy.id, verify=True))
    assert made.read == 512 << 10
    source = open_source(made.copy.source, password)
    assert source.read(3 * MIB, 65536) == b"\x09" * 65536
