"""The modules a guest gets are its own, in the order in which they load."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from livemount.core.errors import UnsupportedError
from livemount.guest.modules import closure
from livemount.guest.rooted import Root

KERNEL = "6.1.0-1-amd64"
DEP = """\
kernel/drivers/scsi/iscsi_tcp.ko.xz: kernel/lib/libiscsi-tcp.ko.xz kernel/lib/libiscsi.ko.xz kernel/scsi_mod.ko.xz
kernel/lib/libiscsi-tcp.ko.xz: kernel/lib/libiscsi.ko.xz kernel/scsi_mod.ko.xz
kernel/lib/libiscsi.ko.xz: kernel/scsi_mod.ko.xz
kernel/scsi_mod.ko.xz:
kernel/drivers/scsi/sd_mod.ko.xz: kernel/scsi_mod.ko.xz
kernel/net/virtio_net.ko.xz:
kernel/net/unrelated.ko.xz:
"""


def elf(name: str, machine: int = 62) -> bytes:
    return b"\x7fELF" + bytes(14) + struct.pack("<H", machine) + name.encode()


def make(tree: Path, dep: str = DEP, machine: int = 62) -> None:
    home = tree / "usr/lib/modules" / KERNEL
    home.mkdir(parents=True)
    (tree / "lib").symlink_to("usr/lib")
    (home / "modules.dep").write_text(dep)
    (home / "modules.builtin").write_text("kernel/drivers/firmware/iscsi_ibft.ko\n")
    for line in dep.splitlines():
        path = home / line.partition(":")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(elf(path.name, machine)))


def test_each_module_comes_after_what_it_needs(tmp_path: Path) -> None:
    make(tmp_path)
    with Root.at(tmp_path) as root:
        found = closure(root, KERNEL, tmp_path)
    assert [module.name for module in found] == [
        *("scsi_mod.ko", "libiscsi.ko", "libiscsi_tcp.ko", "iscsi_tcp.ko", "sd_mod.ko", "virtio_net.ko")
    ]
    assert found[0].data == elf("scsi_mod.ko.xz")


@pytest.mark.parametrize(
    ("missing", "message"), [("iscsi_tcp.ko", "no module iscsi_tcp"), ("virtio_net.ko", "network card")]
)
def test_a_kernel_that_cannot_is_refused(missing: str, message: str, tmp_path: Path) -> None:
    kept = [line for line in DEP.splitlines() if f"{missing}.xz:" not in line]
    make(tmp_path, "\n".join(kept))
    with Root.at(tmp_path) as root, pytest.raises(UnsupportedError, match=message):
        closure(root, KERNEL, tmp_path)


def test_another_processor_is_refused(tmp_path: Path) -> None:
    make(tmp_path, machine=183)
    with Root.at(tmp_path) as root, pytest.raises(UnsupportedError, match="not of an x86-64 kernel"):
        closure(root, KERNEL, tmp_path)


def test_a_kernel_without_modules_is_refused(tmp_path: Path) -> None:
    with Root.at(tmp_path) as root, pytest.raises(UnsupportedError, match=r"modules\.dep"):
        closure(root, KERNEL, tmp_path)
