"""Files of a guest's tree, reached so that no link in it ever leads out of it: every path is resolved by openat2(2).

Files are replaced by rename, so a reader (or a crash) sees the old or the new content.
"""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from livemount.core.errors import UnsupportedError
from livemount.guest.api import Edit, EditKind

OPENAT2 = 437
"""The system call's number, the same on every architecture."""
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10
MOST_NAMES = 100_000
LARGEST_TEXT = 64 * 1024
"""Bytes of a text whose change is shown line by line."""

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _openat2(root: int, path: str, flags: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    encoded = os.fsencode(path)
    while True:
        descriptor: int = _libc.syscall(OPENAT2, root, encoded, ctypes.byref(how), ctypes.sizeof(how))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        # The kernel could not rule out that a rename moved a folder out of the root: ask again.
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number), path)


class Root:
    """A tree seen from its own root: `/etc/fstab` is the tree's, and so is what a link there points at."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.edits: list[Edit] = []
        """What was written, in order."""

    @staticmethod
    @contextmanager
    def at(folder: Path) -> Iterator[Root]:
        """The tree below `folder`, until the block ends."""
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield Root(descriptor)
        finally:
            os.close(descriptor)

    def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Open a regular file. Raises `OSError`, and `UnsupportedError` for a device, pipe or folder."""
        # Without O_NONBLOCK a pipe in the guest's tree would stop us for ever.
        descriptor = _openat2(self.descriptor, path, flags | os.O_NONBLOCK | os.O_NOCTTY)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise UnsupportedError(f"{path} in the guest is not a regular file")
        return descriptor

    def read(self, path: str, limit: int) -> bytes:
        """The content of a file. Raises `OSError`, and `UnsupportedError` when it is longer than `limit` bytes."""
        with os.fdopen(self.open(path), "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise UnsupportedError(f"{path} in the guest is longer than {limit} bytes")
        return data

    def read_text(self, path: str, limit: int = 1024 * 1024) -> str:
        """The content of a text file, `""` when it is not there. Raises as `read`."""
        try:
            return self.read(path, limit).decode(errors="replace")
        except FileNotFoundError:
            return ""

    def kind(self, path: str) -> int | None:
        """The file type bits (`stat.S_IFREG`, ...) of what `path` leads to, `None` when it leads to nothing."""
        try:
            descriptor = _openat2(self.descriptor, path, os.O_PATH)
        except OSError:
            return None
        try:
            return stat.S_IFMT(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)

    def is_file(self, path: str) -> bool:
        """Whether `path` leads to a regular file in this tree."""
        return self.kind(path) == stat.S_IFREG

    def is_folder(self, path: str) -> bool:
        """Whether `path` leads to a folder in this tree."""
        return self.kind(path) == stat.S_IFDIR

    def names(self, path: str) -> list[str]:
        """The names in a folder, sorted; empty when there is no such folder."""
        try:
            with self.folder(path) as descriptor, os.scandir(descriptor) as found:
                return sorted(entry.name for entry, _ in zip(found, range(MOST_NAMES), strict=False))
        except (FileNotFoundError, NotADirectoryError):
            return []

    @contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """A descriptor of a folder, until the block ends. Raises `OSError`."""
        descriptor = _openat2(self.descriptor, path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def free(self, path: str) -> int:
        """Bytes that can still be written below a folder."""
        with self.folder(path) as descriptor:
            space = os.fstatvfs(descriptor)
        return space.f_bavail * space.f_frsize

    def write(self, path: str, data: bytes, permissions: int = 0o644) -> bool:
        """Make `path` a regular file of root's with this content; whether anything had to change.

        Folders on the way are made. A link at the end of `path` is replaced, not followed.
        """
        with self._parent(path) as (parent, name):
            if self._same(parent, name, data, permissions):
                return False
            self._note(path, parent, name, data)
            temporary = f".{name}.livemount"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(temporary, flags, permissions, dir_fd=parent)
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), permissions)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            return True

    def link(self, path: str, target: str) -> bool:
        """Make `path` a symbolic link; whether anything had to change."""
        with self._parent(path) as (parent, name):
            try:
                if os.readlink(name, dir_fd=parent) == target:
                    return False
                os.unlink(name, dir_fd=parent)
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.unlink(name, dir_fd=parent)
            os.symlink(target, name, dir_fd=parent)
            self.edits.append(Edit(path=path, kind=EditKind.LINKED, diff=target))
            return True

    def remove(self, path: str) -> None:
        """Take a file away; nothing happens when it is not there."""
        with self._parent(path) as (parent, name), contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)

    @staticmethod
    def _same(parent: int, name: str, data: bytes, permissions: int) -> bool:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return False
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            alike = stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) == permissions
            return alike and status.st_size == len(data) and file.read() == data

    def _note(self, path: str, parent: int, name: str, data: bytes) -> None:
        """Remember what is about to be written, and what it replaces."""
        old = None
        with contextlib.suppress(OSError):
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if stat.S_ISREG(status.st_mode):
                    old = status.st_size, file.read(LARGEST_TEXT + 1)
        size, text = old or (0, b"")
        kind = EditKind.CHANGED if old is not None else EditKind.ADDED
        self.edits.append(Edit(path=path, kind=kind, before=size, after=len(data), diff=_diff(path, text, data)))

    @contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        """The open folder of `path`, made when missing, and the last name."""
        parts = PurePosixPath("/", path).parts[1:]
        if not parts or ".." in parts:
            raise ValueError(f"{path!r} names no file")
        descriptor = self._folder(parts[:-1])
        try:
            yield descriptor, parts[-1]
        finally:
            os.close(descriptor)

    def _folder(self, parts: tuple[str, ...]) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY
        try:
            return _openat2(self.descriptor, "/".join(parts) or ".", flags)
        except FileNotFoundError:
            parent = self._folder(parts[:-1])
            try:
                os.mkdir(parts[-1], 0o755, dir_fd=parent)
            finally:
                os.close(parent)
            return _openat2(self.descriptor, "/".join(parts), flags)


def _diff(path: str, old: bytes, new: bytes) -> str:
    """A unified diff of two texts; empty where one is none, or is long."""
    if max(len(old), len(new)) > LARGEST_TEXT:
        return ""
    try:
        before, after = old.decode().splitlines(), new.decode().splitlines()
    except UnicodeDecodeError:
        return ""
    names = (f"a{path}" if old else "/dev/null", f"b{path}")
    lines = difflib.unified_diff(before, after, *names, lineterm="")
    # What is shown comes from a guest: no line of it may steer a terminal.
    return "\n".join("".join(c if c.isprintable() or c == "\t" else "?" for c in line) for line in lines)
