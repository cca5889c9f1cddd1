"""Builds a real Debian 12 disk that boots under BIOS and UEFI: the guest of the demonstration and of the tests.

The packages come from mmdebstrap, once: its tar is kept in a cache folder under the digest of the recipe. The disk is
then written without loop devices or mounts. Two builds may share a cache: files enter it by rename.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import struct
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from livemount.core.errors import LivemountError
from livemount.core.run import run
from livemount.core.settings import Settings

SUITE = "bookworm"
MIB = 1024 * 1024
SECTOR = 512
GRUB_LIBRARY = Path("/usr/lib/grub")

CORE_START = MIB
CORE_SIZE = MIB
ESP_START = CORE_START + CORE_SIZE
ESP_SIZE = 48 * MIB
ROOT_START = ESP_START + ESP_SIZE

PACKAGES = [
    "linux-image-cloud-amd64",
    "systemd-sysv",
    "udev",
    "dbus",
    "initramfs-tools",
    "zstd",
    "kmod",
    "ifupdown",
    "isc-dhcp-client",
    "iproute2",
    "iputils-ping",
    "procps",
]
# Not needed in a guest that lives for minutes, and each costs seconds of an emulated processor.
MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "systemd-pstore.service",
]

SERIAL_LOGIN = """\
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 - vt220
"""
INTERFACES = """\
auto lo
iface lo inet loopback

auto eth0
iface eth0 inet dhcp
"""
NETWORKD = """\
[Match]
Name=eth0

[Network]
DHCP=ipv4
"""
GRUB_MODULES = ["part_gpt", "ext2", "search", "search_fs_uuid", "linux", "normal", "configfile", "echo", "test"]


def build_guest(
    directory: Path, *, hostname: str = "web01", size_gib: int = 2, cache: Path, networkd: bool = False
) -> Path:
    """Write `directory`/`hostname`.raw, a sparse disk of `size_gib` GiB, and return its path.

    The guest gets its address by DHCP (ifupdown, or systemd-networkd when `networkd` is set), has no iSCSI initiator,
    and logs root in on its serial console. A disk of the same recipe that is already there is left alone.
    Raises `LivemountError` when packages cannot be had or a program fails.
    """
    directory.mkdir(parents=True, exist_ok=True)
    disk = directory / f"{hostname}.raw"
    recipe = directory / f"{hostname}.recipe.json"
    wanted = {"recipe": recipe_digest(), "hostname": hostname, "size_gib": size_gib, "networkd": networkd}
    if disk.exists() and recipe.exists() and json.loads(recipe.read_text()) == wanted:
        return disk
    archive = _package_archive(cache)
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{hostname}.") as name:
        work = Path(name)
        root_uuid = uuid.uuid5(uuid.NAMESPACE_DNS, f"{hostname}.root")
        tree = work / "root"
        tree.mkdir()
        run("tar", "--extract", "--numeric-owner", "--xattrs", "--file", archive, "--directory", tree)
        _configure(tree, hostname, root_uuid, networkd=networkd)
        built = work / "disk.raw"
        _write_disk(built, tree, work, root_uuid, size_gib)
        recipe.unlink(missing_ok=True)
        built.replace(disk)
        recipe.write_text(json.dumps(wanted))
    return disk


def recipe_digest() -> str:
    """SHA-256 (hex) of all that decides which bytes a guest gets; the cache is keyed by it."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def package_digest() -> str:
    """SHA-256 (hex, shortened) of what decides the package archive."""
    return hashlib.sha256(json.dumps([SUITE, PACKAGES]).encode()).hexdigest()[:16]


def _package_archive(cache: Path) -> Path:
    archive = cache / f"guest-{SUITE}-{package_digest()}.tar"
    if archive.exists():
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".guest-") as name:
        made = Path(name) / "root.tar"
        run(
            "mmdebstrap",
            "--mode=root",
            "--variant=minbase",
            f"--include={','.join(PACKAGES)}",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/man/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
            '--aptopt=Acquire::Languages "none"',
            SUITE,
            made,
            "-",
            input=_apt_sources(),
            timeout=1200,
        )
        made.replace(archive)
    return archive


def _apt_sources() -> str:
    """The machine's own sources of `SUITE`, so that no host is named here and a mirror or proxy is respected."""
    seen = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
        "Origin: Debian",
    ).stdout
    lines = []
    for line in seen.splitlines():
        uri, release, component = line.split()
        if release.startswith(SUITE) and component == "main":
            lines.append(f"deb {uri} {release} {component}")
    if not lines:
        raise LivemountError(
            f"apt on this machine knows no Debian {SUITE}",
            hint=f"add a source of Debian {SUITE}, then `apt-get update`",
        )
    return "\n".join(sorted(set(lines))) + "\n"


def _configure(tree: Path, hostname: str, root_uuid: uuid.UUID, *, networkd: bool) -> None:
    machine_id = hashlib.sha256(hostname.encode()).hexdigest()[:32]
    network: Mapping[str, str] = {"etc/network/interfaces": INTERFACES}
    if networkd:
        network = {
            "etc/network/interfaces": INTERFACES.split("\n\n")[0] + "\n",
            "etc/systemd/network/eth0.network": NETWORKD,
        }
    files = {
        "etc/hostname": f"{hostname}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {hostname}\n",
        "etc/livemount-demo": f"This is {hostname}, a guest made for live mount demonstrations.\n",
        "etc/machine-id": f"{machine_id}\n",
        "etc/fstab": f"UUID={root_uuid} / ext4 errors=remount-ro 0 1\n",
        "etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf": SERIAL_LOGIN,
        "boot/grub/grub.cfg": _grub_menu(tree, root_uuid),
        **network,
    }
    for name, text in files.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
    units = tree / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    if networkd:
        wants = units / "multi-user.target.wants"
        wants.mkdir(exist_ok=True)
        (wants / "systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    shutil.rmtree(tree / "var/lib/apt/lists", ignore_errors=True)


def _grub_menu(tree: Path, root_uuid: uuid.UUID) -> str:
    kernels = sorted(path.name.removeprefix("vmlinuz-") for path in (tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise LivemountError("the package archive of the guest holds no kernel", hint="remove it from the cache")
    kernel = kernels[-1]
    return (
        "set timeout=0\n"
        f"menuentry 'Debian GNU/Linux, {kernel}' {{\n"
        f"  search --no-floppy --fs-uuid --set=root {root_uuid}\n"
        f"  linux /boot/vmlinuz-{kernel} root=UUID={root_uuid} ro net.ifnames=0 console=tty0 console=ttyS0,115200\n"
        f"  initrd /boot/initrd.img-{kernel}\n"
        "}\n"
    )


def _write_disk(disk: Path, tree: Path, work: Path, root_uuid: uuid.UUID, size_gib: int) -> None:
    size = size_gib * 1024 * MIB
    # The backup GPT takes the last 33 sectors.
    root_size = size - ROOT_START - MIB
    with disk.open("wb") as file:
        file.truncate(size)
    arguments = ["--clear"]
    for number, (start, length, code, label) in enumerate(
        [
            (CORE_START, CORE_SIZE, "ef02", "bios"),
            (ESP_START, ESP_SIZE, "ef00", "esp"),
            (ROOT_START, root_size, "8300", "root"),
        ],
        start=1,
    ):
        arguments += [
            f"--new={number}:{start // SECTOR}:{(start + length) // SECTOR - 1}",
            f"--typecode={number}:{code}",
            f"--change-name={number}:{label}",
        ]
    run("sgdisk", *arguments, disk)
    run(
        "mke2fs",
        "-q",
        *("-t", "ext4", "-L", "root", "-U", str(root_uuid), "-d", tree),
        *("-E", f"offset={ROOT_START},lazy_itable_init=1,nodiscard"),
        disk,
        f"{root_size // 1024}k",
    )
    early = work / "early.cfg"
    early.write_text(f"search.fs_uuid {root_uuid} root\nset prefix=($root)/boot/grub\n")
    _embed_bios_grub(disk, work, early)
    _write_esp(disk, work, early)


def _embed_bios_grub(disk: Path, work: Path, early: Path) -> None:
    core = work / "core.img"
    run("grub-mkimage", "-O", "i386-pc", "-c", early, "-p", "/boot/grub", "-o", core, "biosdisk", *GRUB_MODULES)
    image = bytearray(core.read_bytes())
    if len(image) > CORE_SIZE:
        raise LivemountError(f"GRUB's core image of {len(image)} bytes does not fit its partition")
    first = CORE_START // SECTOR
    # As grub-bios-setup does: boot.img holds the core's first sector at 0x5c, the core's first sector holds the
    # place of the rest in its last block-list entry, at 0x1f4; 0x66 gets two no-ops so that the BIOS's drive is used.
    struct.pack_into("<Q", image, 0x1F4, first + 1)
    boot = bytearray((GRUB_LIBRARY / "i386-pc/boot.img").read_bytes()[:440])
    struct.pack_into("<Q", boot, 0x5C, first)
    boot[0x66:0x68] = b"\x90\x90"
    with disk.open("r+b") as file:
        file.write(boot)
        file.seek(CORE_START)
        file.write(image)


def _write_esp(disk: Path, work: Path, early: Path) -> None:
    loader = work / "BOOTX64.EFI"
    run("grub-mkimage", "-O", "x86_64-efi", "-c", early, "-p", "/boot/grub", "-o", loader, *GRUB_MODULES)
    esp = work / "esp.img"
    with esp.open("wb") as file:
        file.truncate(ESP_SIZE)
    run("mkfs.vfat", "-n", "ESP", esp)
    run("mmd", "-i", esp, "::/EFI", "::/EFI/BOOT")
    run("mcopy", "-i", esp, loader, "::/EFI/BOOT/BOOTX64.EFI")
    run("dd", f"if={esp}", f"of={disk}", "bs=1M", f"seek={ESP_START // MIB}", "conv=notrunc,sparse", "status=none")


def main() -> None:
    """`python -m demo.guest OUT.raw`: build a guest named after the file."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path, help="the disk to write, e.g. web01.raw; its stem is the host name")
    parser.add_argument("--size-gib", type=int, default=2)
    parser.add_argument("--networkd", action="store_true", help="systemd-networkd instead of ifupdown")
    parser.add_argument("--cache", type=Path, default=Settings().cache)
    arguments = parser.parse_args()
    out: Path = arguments.out
    if out.suffix != ".raw":
        parser.error("OUT must end in .raw")
    try:
        made = build_guest(
            out.parent,
            hostname=out.stem,
            size_gib=arguments.size_gib,
            cache=arguments.cache,
            networkd=arguments.networkd,
        )
    except LivemountError as error:
        sys.exit(str(error))
    print(made)


if __name__ == "__main__":
    main()
