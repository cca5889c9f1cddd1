"""A read-only view of a folder in which every read takes longer: a slow source for everyone alike.

`python -m bench.delayed FOLDER MOUNT_POINT SECONDS`. Reads bypass the page cache and may be under way together, as
requests to an object store are; one read(2) of up to 1 MiB is one request. Names and attributes are not delayed.
Runs on Debian's `python3-pyfuse3`; ends when its mount point is unmounted.
"""

from __future__ import annotations

import argparse
import errno
import os
import stat
from pathlib import Path
from typing import Any

import pyfuse3  # type: ignore[import-not-found,unused-ignore]
import trio  # type: ignore[import-untyped,unused-ignore]

NAME_TIMEOUT = 3600.0


class Delayed(pyfuse3.Operations):  # type: ignore[misc,unused-ignore]
    """The file system. Inode numbers are given out by path as the kernel asks."""

    def __init__(self, folder: Path, delay: float) -> None:
        super().__init__()
        self._delay = delay
        self._paths = {pyfuse3.ROOT_INODE: folder}
        self._inodes = {folder: pyfuse3.ROOT_INODE}

    def _inode(self, path: Path) -> int:
        inode: int = self._inodes.setdefault(path, len(self._inodes) + 1)
        self._paths[inode] = path
        return inode

    def _attributes(self, path: Path) -> Any:
        try:
            status = path.lstat()
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from error
        entry = pyfuse3.EntryAttributes()
        for field in (
            "st_mode",
            "st_nlink",
            "st_uid",
            "st_gid",
            "st_size",
            "st_mtime_ns",
            "st_atime_ns",
            "st_ctime_ns",
        ):
            setattr(entry, field, getattr(status, field))
        entry.st_ino = self._inode(path)
        entry.attr_timeout = entry.entry_timeout = NAME_TIMEOUT
        return entry

    async def getattr(self, inode: int, _ctx: Any = None) -> Any:
        """Attributes of a file or folder."""
        return self._attributes(self._paths[inode])

    async def lookup(self, parent_inode: int, name: bytes, _ctx: Any = None) -> Any:
        """A name in a folder."""
        return self._attributes(self._paths[parent_inode] / os.fsdecode(name))

    async def opendir(self, inode: int, _ctx: Any) -> int:
        """Folders need no handle."""
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        """The names of a folder, sorted, so that a position stays one."""
        for number, path in enumerate(sorted(self._paths[fh].iterdir())[start_id:], start_id + 1):
            if not stat.S_ISLNK(path.lstat().st_mode) and not pyfuse3.readdir_reply(
                token, os.fsencode(path.name), self._attributes(path), number
            ):
                return

    async def open(self, inode: int, flags: int, _ctx: Any) -> Any:
        """Open a file for reading."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise pyfuse3.FUSEError(errno.EROFS)
        return pyfuse3.FileInfo(fh=os.open(self._paths[inode], os.O_RDONLY), direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Wait, then read."""
        await trio.sleep(self._delay)
        return os.pread(fh, size, off)

    async def release(self, fh: int) -> None:
        """Close a file."""
        os.close(fh)


def main() -> None:
    """Mount and serve."""
    parser = argparse.ArgumentParser(prog="bench.delayed", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("mount_point", type=Path)
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    options = {"fsname=livemount-delayed", "ro"}
    pyfuse3.init(Delayed(arguments.folder.resolve(), arguments.seconds), str(arguments.mount_point), options)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
