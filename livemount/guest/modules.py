"""Which kernel modules a guest needs to reach its disk over iSCSI, taken from the guest's own, in loading order."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from livemount.core.errors import UnsupportedError
from livemount.guest.rooted import Root
from livemount.guest.unpack import is_packed, unpack

REQUIRED = ("iscsi_tcp", "iscsi_ibft", "sd_mod")
"""iSCSI over TCP, the boot firmware table, SCSI disks."""
NETWORK = ("virtio_net", "ena", "gve", "hv_netvsc", "e1000", "e1000e", "vmxnet3")
"""Drivers of the network cards that hypervisors show: at least one must be there."""
HELPERS = ("crc32c_generic", "crc32c_intel", "virtio_pci", "hv_vmbus")
"""Asked for by alias at run time, so that no `modules.dep` names them; taken where they are."""
WANTED = (*HELPERS, *REQUIRED, *NETWORK)

LONGEST_TABLE = 32 * 1024 * 1024
LARGEST_MODULE = 64 * 1024 * 1024
EM_X86_64 = 62


@dataclass(frozen=True)
class Module:
    """A kernel module, not compressed; `name` is its file's, e.g. `iscsi_tcp.ko`."""

    name: str
    data: bytes


def closure(root: Root, kernel: str, scratch: Path) -> list[Module]:
    """The modules of `kernel` to load one after the other.

    Raises `UnsupportedError` when the kernel cannot do iSCSI, knows no hypervisor's network card, or is not x86-64.
    """
    home = f"/lib/modules/{kernel}"
    try:
        table = root.read(f"{home}/modules.dep", LONGEST_TABLE).decode(errors="replace")
    except FileNotFoundError as error:
        raise UnsupportedError(f"the kernel {kernel} has no {home}/modules.dep") from error
    built_in = {_name(line) for line in root.read_text(f"{home}/modules.builtin", LONGEST_TABLE).splitlines()}
    paths, needs = _parse(table)
    for name in REQUIRED:
        if name not in paths and name not in built_in:
            raise UnsupportedError(f"the kernel {kernel} has no module {name}, so it cannot use an iSCSI disk")
    if not any(name in paths or name in built_in for name in NETWORK):
        raise UnsupportedError(
            f"the kernel {kernel} has no driver of a hypervisor's network card: {', '.join(NETWORK)}"
        )
    order: list[str] = []
    for wanted in WANTED:
        # modules.dep lists all a module needs, the nearest first: loading goes from the far end.
        for name in [*reversed(needs.get(wanted, [])), wanted]:
            if name in paths and name not in order:
                order.append(name)
    return [_read(root, f"{home}/{paths[name]}", scratch) for name in order]


def _name(path: str) -> str:
    return PurePosixPath(path.strip()).name.partition(".")[0].replace("-", "_")


def _parse(table: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    paths: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for line in table.splitlines():
        path, colon, rest = line.partition(":")
        if colon:
            paths[_name(path)] = path.strip()
            needs[_name(path)] = [_name(word) for word in rest.split()]
    return paths, needs


def _read(root: Root, path: str, scratch: Path) -> Module:
    try:
        data = root.read(path, LARGEST_MODULE)
    except FileNotFoundError as error:
        raise UnsupportedError(f"the kernel module {path} is listed but not there") from error
    if is_packed(data[:8]):
        data = unpack(data, LARGEST_MODULE, scratch)
    if data[:4] != b"\x7fELF" or len(data) < 20 or struct.unpack_from("<H", data, 18)[0] != EM_X86_64:
        raise UnsupportedError(f"the kernel module {path} is not of an x86-64 kernel")
    return Module(_name(path) + ".ko", data)
