"""Whether the programs are there that live mounts start, and which Debian packages have them."""

from __future__ import annotations

import shutil
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.doctor.api import check

# Debian keeps daemons and tools for root out of the PATH of other users.
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")

HOST = {
    "tgtd": "tgt",
    "tgtadm": "tgt",
    "nginx": "nginx-light",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "losetup": "mount",
    "fusermount3": "fuse3",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
}
CLOUD = {
    "ip": "iproute2",
    "dnsmasq": "dnsmasq-base",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
}
IMAGE = {
    "packer": "packer",
    "grub-mkimage": "grub-common",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "sgdisk": "gdisk",
}
FIRMWARE = {
    "/usr/share/OVMF/OVMF_CODE.fd": "ovmf",
    "/usr/share/seabios/bios-256k.bin": "seabios",
    "/usr/lib/grub/i386-pc/modinfo.sh": "grub-pc-bin",
}


def find_program(name: str, *folders: str | Path) -> str | None:
    """The path of a program on PATH, in a system folder, or in one of `folders` (which win)."""
    for path in (":".join(map(str, folders)), None, ":".join(SYSTEM_FOLDERS)):
        if path != "" and (found := shutil.which(name, path=path)):
            return found
    return None


def _all_there(programs: dict[str, str]) -> str:
    return _none_missing([name for name in programs if find_program(name) is None], programs)


def _none_missing(missing: list[str], packages: dict[str, str]) -> str:
    if missing:
        wanted = " ".join(dict.fromkeys(packages[name] for name in missing))
        raise LivemountError(f"missing: {', '.join(missing)}", hint=f"run `make setup`, or: apt-get install {wanted}")
    return ", ".join(packages)


@check("programs of the live-mount host")
def host() -> str:
    """iSCSI target, boot server, guest preparation."""
    return _all_there(HOST)


@check("programs of the local cloud")
def cloud() -> str:
    """Network and virtual machines."""
    return _all_there(CLOUD)


@check("programs of the machine image")
def image() -> str:
    """Packer and what its template calls."""
    return _all_there(IMAGE)


@check("firmware")
def firmware() -> str:
    """BIOS and UEFI of virtual machines, GRUB of the machine image."""
    return _none_missing([path for path in FIRMWARE if not Path(path).exists()], FIRMWARE)


@check("service manager")
def service_manager() -> str:
    """What the services run under."""
    if Path("/run/systemd/system").is_dir():
        return "systemd"
    if find_program("supervisord") is None or find_program("supervisorctl") is None:
        raise LivemountError(
            "PID 1 is not systemd, and supervisord is missing", hint="run `make setup`, or: apt-get install supervisor"
        )
    return "supervisord (PID 1 is not systemd)"
