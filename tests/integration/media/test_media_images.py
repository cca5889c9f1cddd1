"""Disk images: chains, snapshots, encryption; what an image may not name; nothing is left of a server."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.core.errors import (
    ConflictError,
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.secrets import write_secret
from livemount.media import Source, image_chain, open_source
from livemount.media.sources.image import Image
from tests.support.foreign import MIB, write_disk
from tests.support.foreign_images import Qcow2ChainSubject, qemu_img, write_into

pytestmark = pytest.mark.integration


@pytest.fixture
def opened() -> Iterator[list[Source]]:
    """Sources to close at the end."""
    sources: list[Source] = []
    yield sources
    for source in sources:
        source.close()


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return write_disk(tmp_path / "disk.raw")


def server_of(source: Source) -> int:
    """The process id of the server of an image."""
    assert isinstance(source, Image)
    found = source._server._child
    assert found is not None
    return found.pid


def test_a_chain_in_other_folders_must_be_allowed(tmp_path: Path, opened: list[Source]) -> None:
    (tmp_path / "chain").mkdir()
    subject = Qcow2ChainSubject(tmp_path / "chain")
    (tmp_path / "top").mkdir()
    top = tmp_path / "top/web01.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", "../chain/disk.qcow2", "-F", "qcow2", top, cwd=tmp_path / "top")
    with pytest.raises(DeniedError, match=r"chain/disk\.qcow2 .*backing=FOLDER"):
        open_source(f"image://{top}", None)
    source = open_source(f"image://{top}?backing={tmp_path}/chain", None)
    opened.append(source)
    assert source.read(0, source.size) == subject.content
    # Its own folder counts by where the file is, not by where a link to it is.
    link = tmp_path / "chain/link.qcow2"
    link.symlink_to(top)
    with pytest.raises(DeniedError, match="lies outside"):
        open_source(f"image://{link}", None)


def test_each_file_of_the_chain_is_part_of_the_identity(tmp_path: Path, opened: list[Source]) -> None:
    subject = Qcow2ChainSubject(tmp_path)
    source = subject.open()
    opened.append(source)
    base = tmp_path / "base.img"
    base.write_bytes(base.read_bytes()[:-1] + b"!")
    with pytest.raises(CorruptError, match=r"base\.img was changed"):
        source.read(0, 512)
    again = subject.open()
    opened.append(again)
    assert again.identity != source.identity


SECRETS = "/etc/shadow"


def point_to(image: Path, name: str) -> None:
    """Write a backing file's name into a qcow2 header, as an attacker would."""
    with image.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack(">QI", 1024, len(name)))
        file.seek(1024)
        file.write(name.encode())


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (SECRETS, DeniedError),
        ("../../../../../../../../etc/shadow", DeniedError),
        ('json:{"driver":"file","filename":"/etc/shadow"}', DeniedError),
        ("nbd:127.0.0.1:10809", DeniedError),
        ("http://127.0.0.1/", DeniedError),
        ("file:/etc/shadow", DeniedError),
        ("link.raw", DeniedError),
        ("pipe.raw", UsageError),
        ("missing.raw", NotFoundError),
        ("disk.qcow2", CorruptError),
        ("unknown", UnsupportedError),
    ],
)
def test_names_in_a_header_are_not_trusted(tmp_path: Path, name: str, error: type[LivemountError]) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    (tmp_path / "link.raw").symlink_to(SECRETS)
    (tmp_path / "unknown").write_bytes(bytes(MIB))
    os.mkfifo(tmp_path / "pipe.raw")
    point_to(image, name)
    with pytest.raises(error):
        open_source(f"image://{image}", None)


@pytest.mark.parametrize("name", [SECRETS, "json:{}", "nbd:127.0.0.1:1", "../x"])
def test_extents_of_a_vmdk_are_not_trusted(tmp_path: Path, name: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "x").write_bytes(bytes(MIB))
    image = tmp_path / "images/disk.vmdk"
    text = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
    image.write_text(f'{text}RW 1 FLAT "{name}" 0\n')
    with pytest.raises(DeniedError):
        open_source(f"image://{image}", None)


def test_data_in_another_file_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path}/data.raw", image, "1M")
    with pytest.raises(DeniedError, match="in another file"):
        open_source(f"image://{image}", None)


def test_the_files_that_a_server_opened_are_compared(
    tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line: were a name in a header followed after all, not a byte would be read."""
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", disk, "-F", "raw", image)
    whole = open_source(f"image://{image}", None)
    whole.close()
    monkeypatch.setattr(image_chain.Inspector, "follow", lambda _, file, __: [image_chain.Layer(file, "vhd")])
    node = {"driver": "qcow2", "file": {"driver": "file", "filename": str(image)}}
    monkeypatch.setattr("livemount.media.sources.image.qemu_node", lambda *_: node)
    with pytest.raises(DeniedError, match="led qemu-nbd to 1 files"):
        open_source(f"image://{image}", None)


def test_the_format_is_not_guessed(tmp_path: Path, disk: Path) -> None:
    """A guest that writes a qcow2 header to its raw disk gains nothing."""
    qemu_img("convert", "-O", "qcow2", disk, tmp_path / "a.img")
    with pytest.raises(UsageError, match="does not tell the image's format"):
        open_source(f"image://{tmp_path}/a.img", None)
    source = open_source(f"image://{tmp_path}/a.img?format=qcow2", None)
    assert source.read(0, MIB) == disk.read_bytes()[:MIB]
    source.close()
    for format in ("vmdk", "vhd", "vhdx"):
        with pytest.raises(CorruptError, match=f"is no {format} image"):
            open_source(f"image://{tmp_path}/a.img?format={format}", None)
    for format in ("raw", "qed", "../x"):
        with pytest.raises(UsageError):
            open_source(f"image://{tmp_path}/a.img?format={format}", None)


@pytest.mark.parametrize(
    ("name", "format", "options"),
    [
        ("disk.vmdk", "vmdk", "subformat=monolithicSparse"),
        ("disk.vmdk", "vmdk", "subformat=monolithicFlat"),
        ("disk.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat"),
        ("disk.vhd", "vpc", "subformat=fixed,force_size=on"),
        ("disk.vhdx", "vhdx", "subformat=fixed"),
        ("disk.qcow2", "qcow2", "compat=0.10"),
    ],
)
def test_other_forms_of_the_formats(tmp_path: Path, disk: Path, name: str, format: str, options: str) -> None:
    image = tmp_path / name
    qemu_img("convert", "-f", "raw", "-O", format, "-o", options, disk, image)
    source = open_source(f"image://{image}", None)
    assert source.read(0, source.size) == disk.read_bytes()
    source.close()
    for flat in tmp_path.glob("disk-*"):
        os.truncate(flat, MIB)
        with pytest.raises(CorruptError, match="is shorter than"):
            open_source(f"image://{image}", None)


def test_a_snapshot_in_an_image(tmp_path: Path, disk: Path, opened: list[Source]) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", disk, image)
    qemu_img("snapshot", "-c", "before, all", image)
    write_into(image, 0, b"!" * MIB)
    content = disk.read_bytes()
    then = open_source(f"image://{image}?snapshot=before%2C%20all", None)
    now = open_source(f"image://{image}", None)
    opened.extend((then, now))
    assert then.read(0, then.size) == content
    assert now.read(0, now.size) == b"!" * MIB + content[MIB:]
    assert then.identity != now.identity
    with pytest.raises(NotFoundError, match="no snapshot 'after'"):
        open_source(f"image://{image}?snapshot=after", None)
    qemu_img("convert", "-O", "vmdk", disk, tmp_path / "disk.vmdk")
    with pytest.raises(UnsupportedError):
        open_source(f"image://{tmp_path}/disk.vmdk?snapshot=a", None)


def test_an_encrypted_image(tmp_path: Path, disk: Path, opened: list[Source]) -> None:
    image, password = tmp_path / "disk.qcow2", tmp_path / "password"
    write_secret(password, "correct horse")
    secret = ("--object", f"secret,id=s,file={password}")
    options = ("-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10")
    words: list[str | Path] = ["qemu-img", "convert", *secret, "-O", "qcow2", *options, disk, image]
    for _ in range(10):  # QEMU sometimes fails to measure how fast it derives keys
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if "accurate CPU usage" not in done.stderr:
            break
    assert done.returncode == 0, done.stderr
    source = open_source(f"image://{image}", password)
    opened.append(source)
    assert source.read(0, source.size) == disk.read_bytes()
    command = Path(f"/proc/{server_of(source)}/cmdline").read_bytes()
    assert b"correct" not in command + Path(f"/proc/{server_of(source)}/environ").read_bytes()
    with pytest.raises(DeniedError, match="is encrypted"):
        open_source(f"image://{image}", None)
    write_secret(password, "wrong")
    with pytest.raises(DeniedError, match=r"password .* is wrong"):
        open_source(f"image://{image}", password)
    qemu_img("convert", "-O", "vmdk", disk, tmp_path / "disk.vmdk")
    with pytest.raises(UsageError, match="no password"):
        open_source(f"image://{tmp_path}/disk.vmdk", password)


def test_an_image_in_use_is_refused(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", image, "1M")
    words = ["qemu-io", "-f", "qcow2", str(image)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write(b"write 0 512\n")
        user.stdin.flush()
        assert b"wrote" in user.stdout.readline() + user.stdout.readline()
        with pytest.raises(ConflictError, match="is in use"):
            open_source(f"image://{image}", None)
        user.stdin.close()


def test_a_server_that_dies_is_started_again(tmp_path: Path, disk: Path, opened: list[Source]) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", disk, image)
    source = open_source(f"image://{image}", None)
    opened.append(source)
    content = disk.read_bytes()
    os.kill(server_of(source), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert source.read(MIB, MIB) == content[MIB : 2 * MIB]
            break
        except UnavailableError:
            assert time.monotonic() < deadline


OPENS = """
import os, sys, threading
from livemount.media import open_source

sources = []
thread = threading.Thread(target=lambda: sources.append(open_source(sys.argv[1], None)))
thread.start()
thread.join()  # the thread that opens a source may end before the source does
assert sources[0].read(0, 512)
print(sources[0]._server._child.pid, flush=True)
sys.stdin.read()
"""


def test_nothing_is_left_of_a_killed_process(tmp_path: Path, disk: Path) -> None:
    image = tmp_path / "disk.qcow2"
    qemu_img("convert", "-O", "qcow2", disk, image)
    words = [sys.executable, "-c", OPENS, f"image://{image}"]
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as user:
        assert user.stdout is not None
        server = int(user.stdout.readline())
        assert b"qemu-nbd" in Path(f"/proc/{server}/cmdline").read_bytes()
        user.kill()
    deadline = time.monotonic() + 60
    while _runs(server):
        assert time.monotonic() < deadline, "qemu-nbd is left"
        time.sleep(0.02)
    assert list((tmp_path / "tmp").iterdir()) == []


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
