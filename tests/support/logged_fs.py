"""A small FUSE file system in memory that logs, in order and with data, every change and every sync.

`python -m tests.support.logged_fs MOUNT_POINT LOG [FOLDER]` serves until it is unmounted, starting with what FOLDER
holds. It answers /dev/fuse itself: FUSE libraries for Python know no fallocate. LOG is a row of pickled tuples:

    write INODE OFFSET DATA (also for zeroed ranges)    size INODE SIZE    sync INODE    syncfailed INODE
    link FOLDER NAME INODE IS_FOLDER    unlink FOLDER NAME    rename FOLDER NAME FOLDER NAME    note TEXT

What is written to the file `.control` at its top is noted in the log, or, as `fail sync PATH ERRNO SKIP COUNT`, makes
syncs of a file fail: the first SKIP succeed, the next COUNT do not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from livemount._native import mount_fuse
from tests.support.sparse import SparseFile

MAX_WRITE = 1 << 20
ROOT = 1
CONTROL = 2
CONTROL_NAME = ".control"

# From the kernel's include/uapi/linux/fuse.h.
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
ATTRIBUTES = struct.Struct("<6Q10I")
INIT_FLAGS = 1 << 0 | 1 << 5 | 1 << 22  # ASYNC_READ, BIG_WRITES, MAX_PAGES
DIRECT_IO, KEEP_CACHE, NO_FLUSH = 1 << 0, 1 << 1, 1 << 5
SETATTR_SIZE = 1 << 3
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16

Node = dict[str, int] | SparseFile


def load(path: Path) -> SparseFile:
    """A file's content, holes left out."""
    found = SparseFile()
    with path.open("rb") as file:
        found.resize(os.fstat(file.fileno()).st_size)
        at = 0
        while at < found.size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            found.write(at, os.pread(file.fileno(), end - at, at))
            at = end
    return found


class LoggedFs:
    """The tree, by inode, and what the kernel asks of it."""

    valid = 1 << 30
    """Seconds that the kernel may believe names and attributes."""

    def __init__(self, log: BinaryIO, folder: Path | None) -> None:
        self.nodes: dict[int, Node] = {ROOT: {}, CONTROL: SparseFile()}
        self._log = log
        self._failures: dict[int, list[int]] = {}
        if folder is not None:
            self._load(folder, ROOT)

    def _load(self, folder: Path, inode: int) -> None:
        for path in sorted(folder.iterdir()):
            child = self._add(inode, path.name, {} if path.is_dir() else load(path))
            if path.is_dir():
                self._load(path, child)

    def _note(self, *record: Any) -> None:
        pickle.dump(record, self._log)

    def _add(self, parent: int, name: str, node: Node) -> int:
        inode = len(self.nodes) + 1
        self.nodes[inode] = node
        self._folder(parent)[name] = inode
        return inode

    def _folder(self, inode: int) -> dict[str, int]:
        node = self.nodes[inode]
        if not isinstance(node, dict):
            raise NotADirectoryError(errno.ENOTDIR, "")
        return node

    def _file(self, inode: int) -> SparseFile:
        node = self.nodes[inode]
        if isinstance(node, dict):
            raise IsADirectoryError(errno.EISDIR, "")
        return node

    def child(self, parent: int, name: str) -> int:
        """The inode of a name."""
        if (parent, name) == (ROOT, CONTROL_NAME):
            return CONTROL
        try:
            return self._folder(parent)[name]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "") from None

    def _attributes(self, inode: int) -> bytes:
        node = self.nodes[inode]
        size, mode = (0, stat.S_IFDIR | 0o700) if isinstance(node, dict) else (node.size, stat.S_IFREG | 0o600)
        return ATTRIBUTES.pack(inode, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _entry(self, inode: int) -> bytes:
        return struct.pack("<4QII", inode, 0, self.valid, self.valid, 0, 0) + self._attributes(inode)

    def lookup(self, node: int, body: bytes) -> bytes:
        """LOOKUP."""
        return self._entry(self.child(node, os.fsdecode(body[:-1])))

    def getattr(self, node: int, _body: bytes) -> bytes:
        """GETATTR."""
        return struct.pack("<QQ", self.valid, 0) + self._attributes(node)

    def setattr(self, node: int, body: bytes) -> bytes:
        """SETATTR: only a size changes anything."""
        if struct.unpack_from("<I", body)[0] & SETATTR_SIZE and node != CONTROL:
            self._resize(node, struct.unpack_from("<Q", body, 16)[0])
        return self.getattr(node, body)

    def _resize(self, node: int, size: int) -> None:
        self._file(node).resize(size)
        self._note("size", node, size)

    def mkdir(self, node: int, body: bytes) -> bytes:
        """MKDIR."""
        return self._make(node, os.fsdecode(body[8:-1]), {})

    def create(self, node: int, body: bytes) -> bytes:
        """CREATE, then OPEN."""
        return self._make(node, os.fsdecode(body[16:-1]), SparseFile()) + self.open(0, b"")

    def _make(self, parent: int, name: str, node: Node) -> bytes:
        inode = self._add(parent, name, node)
        self._note("link", parent, name, inode, isinstance(node, dict))
        return self._entry(inode)

    def unlink(self, node: int, body: bytes) -> bytes:
        """UNLINK, RMDIR."""
        name = os.fsdecode(body[:-1])
        if isinstance(self.nodes[self.child(node, name)], dict) and self.nodes[self.child(node, name)]:
            raise OSError(errno.ENOTEMPTY, "")
        del self._folder(node)[name]
        self._note("unlink", node, name)
        return b""

    def rename(self, node: int, body: bytes, header: int = 8) -> bytes:
        """RENAME."""
        (target,) = struct.unpack_from("<Q", body)
        old, new = (os.fsdecode(name) for name in body[header:-1].split(b"\0"))
        self._folder(target)[new] = self._folder(node).pop(old)
        self._note("rename", node, old, target, new)
        return b""

    def rename2(self, node: int, body: bytes) -> bytes:
        """RENAME2, without flags."""
        if struct.unpack_from("<I", body, 8)[0]:
            raise OSError(errno.EINVAL, "")
        return self.rename(node, body, 16)

    def open(self, node: int, _body: bytes) -> bytes:
        """OPEN, OPENDIR."""
        return struct.pack("<QII", 0, DIRECT_IO if node == CONTROL else KEEP_CACHE | NO_FLUSH, 0)

    def read(self, node: int, body: bytes) -> bytes:
        """READ."""
        _, offset, size = struct.unpack_from("<QQI", body)
        return self._file(node).read(offset, size)

    def write(self, node: int, body: bytes) -> bytes:
        """WRITE."""
        _, offset, size = struct.unpack_from("<QQI", body)
        data = body[40 : 40 + size]
        if node == CONTROL:
            self.control(data.decode())
        else:
            self._file(node).write(offset, data)
            self._note("write", node, offset, data)
        return struct.pack("<II", size, 0)

    def control(self, text: str) -> None:
        """What was written to `.control`."""
        match text.split():
            case ["fail", "sync", path, number, skip, count]:
                inode = ROOT
                for name in path.split("/"):
                    inode = self.child(inode, name)
                self._failures[inode] = [int(number), int(skip), int(count)]
            case _:
                self._note("note", text)

    def sync(self, node: int, _body: bytes) -> bytes:
        """FSYNC, FSYNCDIR: also for fdatasync the size counts."""
        number, skip, count = self._failures.get(node, (0, 1, 0))
        if skip == 0 and count > 0:
            self._failures[node][2] -= 1
            self._note("syncfailed", node)
            raise OSError(number, "")
        if node in self._failures and skip:
            self._failures[node][1] -= 1
        self._note("sync", node)
        return b""

    def allocate(self, node: int, body: bytes) -> bytes:
        """FALLOCATE."""
        _, offset, length, mode = struct.unpack_from("<QQQI", body)
        file = self._file(node)
        end = offset + length
        if mode & ~(KEEP_SIZE | PUNCH_HOLE | ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, "")
        if not mode & KEEP_SIZE and end > file.size:
            self._resize(node, end)
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            length = max(0, min(end, file.size) - offset)
            file.write(offset, bytes(length))
            self._note("write", node, offset, bytes(length))
        return b""

    def seek(self, node: int, body: bytes) -> bytes:
        """LSEEK: pages that were written are data."""
        _, offset, whence = struct.unpack_from("<QQI", body)
        file = self._file(node)
        wanted = whence == os.SEEK_DATA
        while offset < file.size and (offset // 4096 in file.pages) != wanted:
            offset = (offset // 4096 + 1) * 4096
        if offset >= file.size and wanted:
            raise OSError(errno.ENXIO, "")
        return struct.pack("<Q", min(offset, file.size))

    def readdir(self, node: int, body: bytes) -> bytes:
        """READDIR."""
        _, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for number, (name, inode) in enumerate([*self._folder(node).items()][offset:], offset + 1):
            kind = stat.S_IFDIR if isinstance(self.nodes[inode], dict) else stat.S_IFREG
            raw = os.fsencode(name)
            entry = struct.pack("<QQII", inode, number, len(raw), kind >> 12) + raw
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer

    def statfs(self, _node: int, _body: bytes) -> bytes:
        """STATFS: there is room."""
        return struct.pack("<5Q10I", 1 << 30, 1 << 30, 1 << 30, 1 << 20, 1 << 20, 4096, 255, 4096, *[0] * 7)

    def nothing(self, _node: int, _body: bytes) -> bytes:
        """RELEASE, RELEASEDIR, DESTROY."""
        return b""

    def init(self, _node: int, body: bytes) -> bytes:
        """INIT."""
        _, minor, readahead, flags = struct.unpack_from("<IIII", body)
        pages = MAX_WRITE // 4096
        return INIT_OUT.pack(7, min(minor, 40), readahead, flags & INIT_FLAGS, 16, 12, MAX_WRITE, 1, pages, 0, 0)

    def handlers(self) -> dict[int, Callable[[int, bytes], bytes]]:
        """By opcode."""
        return {
            1: self.lookup,
            3: self.getattr,
            4: self.setattr,
            9: self.mkdir,
            10: self.unlink,
            11: self.unlink,
            12: self.rename,
            14: self.open,
            15: self.read,
            16: self.write,
            17: self.statfs,
            18: self.nothing,
            20: self.sync,
            26: self.init,
            27: self.open,
            28: self.readdir,
            29: self.nothing,
            30: self.sync,
            35: self.create,
            38: self.nothing,
            43: self.allocate,
            45: self.rename2,
            46: self.seek,
        }


FORGETS = (2, 36, 42)
"""FORGET, INTERRUPT, BATCH_FORGET: no answer is expected."""


def serve(mount_point: Path, file_system: LoggedFs) -> None:
    """Mount, say so, and answer the kernel until the unmount."""
    descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    mount_fuse(descriptor, mount_point)
    print("mounted", flush=True)
    handlers = file_system.handlers()
    while True:
        try:
            message = os.read(descriptor, MAX_WRITE + 4096)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            continue
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(message)
        if opcode in FORGETS:
            continue
        number, answer = errno.ENOSYS, b""
        if opcode in handlers:
            try:
                number, answer = 0, handlers[opcode](node, message[IN_HEADER.size :])
            except OSError as error:
                number = error.errno or errno.EIO
        # Who asked may have been killed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            os.write(descriptor, OUT_HEADER.pack(OUT_HEADER.size + len(answer), -number, unique) + answer)


def main() -> None:
    """Log while mounted."""
    mount_point, log, *folder = map(Path, sys.argv[1:])
    with log.open("wb") as file:
        serve(mount_point, LoggedFs(file, folder[0] if folder else None))


if __name__ == "__main__":
    main()
