"""Trees of files with all that a file system can hold, and what two trees must have in common."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from livemount.core.run import run

MIB = 1 << 20
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""`cap_net_bind_service=ep`."""
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, permissions, who)
    for tag, permissions, who in (
        (1, 6, 0xFFFFFFFF),
        (2, 4, 1234),
        (4, 4, 0xFFFFFFFF),
        (16, 4, 0xFFFFFFFF),
        (32, 0, 0xFFFFFFFF),
    )
)
"""What `setfacl -m u:1234:r` makes of mode 0640."""


def write_tree(root: Path, seed: int = 0) -> Path:
    """A small tree with one of everything."""
    choose = random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    for name in ("etc", "srv/deep/er", "many", "dev", "öffentlich"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "empty").write_bytes(b"")
    (root / "etc/hostname").write_text(f"web{seed:02d}\n")
    (root / "srv/noise").write_bytes(choose.randbytes(3 * MIB + 777))
    (root / "srv/deep/er/text").write_bytes(b"text " * 20_000)
    with (root / "srv/sparse").open("wb") as file:
        file.truncate(64 * MIB)
        for at in (0, 3, 9, 20, 31, 44, 60):
            file.seek(at * MIB + 4096)
            file.write(choose.randbytes(5000))
    for number in range(600):
        (root / f"many/a-rather-long-name-of-a-small-file-{number:04d}").write_bytes(choose.randbytes(number % 7))
    (root / "öffentlich/Ärger\n\\x").write_text("odd names")
    os.link(root / "etc/hostname", root / "srv/the-same")
    (root / "etc/mtab").symlink_to("../proc/self/mounts")
    (root / "srv/far").symlink_to("x" * 200)
    os.mkfifo(root / "srv/pipe", 0o640)
    os.mknod(root / "dev/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(root / "dev/large", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(root / "srv"):
        made.bind("socket")
    program = root / "srv/program"
    program.write_bytes(b"\x7fELF")
    os.chown(program, 1000, 70_000)
    program.chmod(0o6755)
    os.setxattr(program, "security.capability", CAPABILITY)
    (root / "etc/secret").write_text("secret")
    (root / "etc/secret").chmod(0o640)
    os.setxattr(root / "etc/secret", "system.posix_acl_access", ACL)
    os.setxattr(root / "etc/secret", "user.note", b"n" * 500)
    os.setxattr(root / "srv", "system.posix_acl_default", ACL)
    os.setxattr(root / "srv/noise", "user.empty", b"")
    (root / "srv/deep").chmod(0o1777)
    for number, path in enumerate(sorted(root.rglob("*"), key=lambda path: len(path.parts), reverse=True)):
        os.utime(path, ns=(10**18 + number, 15 * 10**17 + number * 1_000_000_007), follow_symlinks=False)
    os.utime(root / "empty", (5_000_000_000, 5_000_000_000))
    os.utime(root / "etc/mtab", ns=(-1_500_000_000, -1_500_000_000), follow_symlinks=False)
    return root


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """What is in a tree, by path: kind, mode, owners, time of change, attributes, links, content."""
    first: dict[tuple[int, int], str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        name, status = str(path.relative_to(root)), path.lstat()
        if name == "lost+found":
            continue
        kind = stat.S_IFMT(status.st_mode)
        shared = first.setdefault((status.st_dev, status.st_ino), name)
        content: object = None
        if kind == stat.S_IFREG:
            content = path.read_bytes()
        elif kind == stat.S_IFLNK:
            content = path.readlink()
        names = sorted(os.listxattr(path, follow_symlinks=False))
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in names}
        size = 0 if kind == stat.S_IFDIR else status.st_size
        device = status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        links = status.st_nlink if kind != stat.S_IFDIR else 0
        found[name] = (
            *(kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, size, device, links),
            *(status.st_mtime_ns, attributes, shared, content),
        )
    return found


class Readable(Protocol):
    """A `Source`, or the native disk that one is made of."""

    @property
    def size(self) -> int: ...
    def extents(self, offset: int, length: int) -> Iterable[tuple[int, int, bool]]: ...
    def read(self, offset: int, length: int) -> bytes: ...


def dump(source: Readable, target: Path) -> Path:
    """Write what is no hole of a source into a file."""
    with target.open("wb") as file:
        file.truncate(source.size)
        for offset, length, hole in source.extents(0, source.size):
            if not hole:
                os.pwrite(file.fileno(), source.read(offset, length), offset)
    return target


@contextlib.contextmanager
def mounted(disk: Path, start: int, folder: Path, size: int | None = None) -> Iterator[Path]:
    """A file system of a disk file, read only. Without `size` (bytes) it is the only one that is mounted."""
    folder.mkdir(exist_ok=True)
    place = f"loop,offset={start}" + ("" if size is None else f",sizelimit={size}")
    run("mount", "-t", "ext4", "-o", f"{place},ro,noload,nodev,nosuid,noexec", disk, folder)
    try:
        yield folder
    finally:
        run("umount", folder)
