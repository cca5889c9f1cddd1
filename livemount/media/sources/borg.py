"""`borg:///REPOSITORY?archive=NAME&path=PATH`: a disk image in an archive of a borg repository on this machine.

borg has no interface for programs: `borg mount` of the one file is read, one process for each source, in a mount
namespace of its own that ends with it, so that nothing is left of either. borg reads one chunk after the other and
checks each; the recall store hides its slowness. While the source is open the repository has borg's shared lock: a
backup into it waits, and nothing is pruned.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.run import run
from livemount.core.secrets import read_secret
from livemount.media.child import Child, confined
from livemount.media.registry import SourceUri
from livemount.media.source import RangeSource, Source

SCHEMES = ("borg",)
CHUNK = 1 << 20
"""What borg decodes for one byte is 2 MiB on average."""
CACHED_CHUNKS = 32
START_PATIENCE = 60.0
PATIENCE = 60.0
"""Seconds for one read."""
END_PATIENCE = 5.0
LOCK_WAIT = 5

# Our own scratch space lies on a folder that is everywhere and that borg needs nothing of.
SCRATCH = "/sys"
MOUNT, TEMPORARY = f"{SCRATCH}/mount", f"{SCRATCH}/temporary"
# A shell waits for borg in its stead. It is told of our end more than once, by the kernel, and borg when it is asked to
# end a second time leaves its lock behind; of the shell's own end it is told, too.
_SCRIPT = f"""
mount -t tmpfs -o mode=700,size=256m none {SCRATCH} && mkdir {MOUNT} {TEMPORARY} || exit 2
setpriv --pdeathsig KILL -- "$@" & borg=$!
trap 'trap "" TERM; kill -TERM $borg' TERM
wait $borg; status=$?
[ $status -le 128 ] || {{ wait $borg; status=$?; }}
exit $status
"""


class Borg:
    """borg's command for one repository, and the secret it needs."""

    def __init__(self, repository: Path, password: str | None) -> None:
        self.repository = repository
        self._password = password

    def words(self, *words: str) -> list[str]:
        """The words that run borg in namespaces of its own."""
        apart = ("unshare", "--mount", "--propagation=private", "--", "sh", "-c", _SCRIPT, "sh")
        # With the network goes the address by which borg knows this machine, and that a dead lock is its own.
        return confined(*apart, "borg", *words, network=True)

    @contextmanager
    def secret(self) -> Iterator[tuple[dict[str, str], tuple[int, ...]]]:
        """The environment, and the descriptors that it names."""
        kept = ("HOME", "BORG_BASE_DIR", "BORG_CONFIG_DIR", "BORG_KEYS_DIR")
        environment = {name: os.environ[name] for name in kept if name in os.environ} | {
            "BORG_CACHE_DIR": f"{SCRATCH}/cache",
            "BORG_SECURITY_DIR": f"{SCRATCH}/security",
            "TMPDIR": TEMPORARY,
            "BORG_MOUNT_DATA_CACHE_ENTRIES": str(CACHED_CHUNKS),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
            "BORG_EXIT_CODES": "legacy",
        }
        if self._password is None:
            yield environment | {"BORG_PASSPHRASE": ""}, ()
            return
        descriptor = os.memfd_create("passphrase", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, self._password.encode())
            os.lseek(descriptor, 0, os.SEEK_SET)
            yield environment | {"BORG_PASSPHRASE_FD": str(descriptor)}, (descriptor,)
        finally:
            os.close(descriptor)

    def archive_id(self, name: str) -> str:
        """The id of an archive: a hash over all that is in it."""
        words = ("list", "--json", "--lock-wait", str(LOCK_WAIT), str(self.repository))
        with self.secret() as (environment, descriptors):
            base = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
            done = run(*self.words(*words), env=base | environment, pass_fds=descriptors, check=False)
        if done.returncode not in (0, 1):
            raise self.error(done.stderr)
        try:
            found = json.loads(done.stdout)
            key = found["repository"]["id"]
            ids = {archive["name"]: archive["id"] for archive in found["archives"]}
        except (ValueError, KeyError, TypeError) as error:
            raise UnsupportedError(f"this version of borg lists {self.repository} in another way") from error
        if name not in ids:
            listed = ", ".join(list(ids)[-5:]) or "none"
            raise NotFoundError(f"{self.repository} has no archive {name!r}", hint=f"its last ones: {listed}")
        return f"{key}:{ids[name]}"

    def error(self, said: str) -> LivemountError:
        """The error for what borg said when it failed."""
        lines = [line for line in said.splitlines() if line.strip()]
        message = f"borg cannot read {self.repository}: {lines[-1] if lines else 'it does not say why'}"
        if "assphrase" in said:
            return DeniedError(f"the password of {self.repository} is wrong or missing")
        if "acquire the lock" in said or "LockTimeout" in said:
            return UnavailableError(f"{self.repository} is in use by another borg", hint="`borg break-lock` if it died")
        if "does not exist" in said or "No such file" in said:
            return NotFoundError(message)
        if "command not found" in said or "borg: not found" in said:
            return UnsupportedError("borg is not installed", hint="apt-get install borgbackup python3-pyfuse3")
        if "no FUSE support" in said or "ModuleNotFoundError" in said:
            return UnsupportedError("borg cannot mount here", hint="apt-get install python3-pyfuse3")
        return CorruptError(message)


class BorgImage(RangeSource):
    """A `Source` over a file of an archive."""

    def __init__(self, borg: Borg, archive: str, path: str) -> None:
        self._borg = borg
        self._archive = archive
        self._path = path
        self._name = f"{path} of {borg.repository}::{archive}"
        self._id = borg.archive_id(archive)
        # Held while borg is mounted and read: it does one thing at a time, and who met a bad chunk must be known.
        self._turn = threading.Lock()
        self._child: Child | None = None
        self._descriptor = -1
        self._began: float | None = None
        self._ended = threading.Event()
        with self._turn:
            self._size = os.fstat(self._mount()).st_size
        if self._size == 0 or self._size % 512:
            self.close()
            raise UnsupportedError(f"{self._name} is no disk image: it has {self._size} bytes, not a multiple of 512")
        threading.Thread(target=self._watch, name="borg", daemon=True).start()

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._size

    @property
    def identity(self) -> str:
        """Made of the ids of repository and archive, and the path: borg changes none of them."""
        return hashlib.sha256(repr(("borg", self._id, self._path)).encode()).hexdigest()

    @property
    def chunk_size(self) -> int:
        """1 MiB."""
        return CHUNK

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes, checked by borg."""
        self._check(offset, length)
        if not length:
            return b""
        if not self._turn.acquire(timeout=PATIENCE):
            raise UnavailableError(f"borg has not come to read {self._name} for {PATIENCE:.0f} s")
        try:
            # borg's mount ends, without a word, when it meets a damaged chunk. Once could be somebody's kill.
            for _ in range(2):
                descriptor = self._mount()
                self._began = time.monotonic()
                try:
                    return self._read(descriptor, offset, length)
                except OSError as error:
                    problem = self._problem(error)
                    if problem is not None:
                        raise problem from error
                finally:
                    self._began = None
            raise CorruptError(
                f"borg ends when it reads {length} bytes at {offset} of {self._name}", hint="`borg check` tells more"
            )
        finally:
            self._turn.release()

    def _read(self, descriptor: int, offset: int, length: int) -> bytes:
        parts = []
        while length:
            part = os.pread(descriptor, length, offset)
            if not part:
                raise CorruptError(f"{self._name} became shorter while it was read")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _problem(self, error: OSError) -> LivemountError | None:
        """What a failed read is to be told as; nothing when borg has ended by itself."""
        child = self._child
        if not self._open or child is None:
            return UnavailableError(f"the source {self._name} is closed")
        if not child.wait(1 if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else 0):
            if error.errno == errno.EIO:
                return CorruptError(f"borg cannot read {self._name}: a chunk is missing")
            return UnavailableError(f"borg cannot read {self._name}: {error.strerror}")
        if child.exit_code == 0 and (self._borg.repository / "config").is_file():
            return None
        return UnavailableError(f"borg has ended while it read {self._name}")

    def _mount(self) -> int:
        """The open file, mounted when it is not, or when borg has died. Whose turn it is calls it."""
        if not self._open:
            raise UnavailableError(f"the source {self._name} is closed")
        if self._child is not None and self._child.running:
            return self._descriptor
        self._unmount()
        place = f"{self._borg.repository}::{self._archive}"
        words = ("mount", "--foreground", "--lock-wait", str(LOCK_WAIT), "-o", "ro", place, MOUNT)
        with self._borg.secret() as (environment, descriptors):
            mount = self._borg.words(*words, f"pf:{self._path}")
            child = Child(mount, environment=environment, pass_fds=descriptors, last_signal="TERM")
        deadline = time.monotonic() + START_PATIENCE
        try:
            while True:
                if child.wait(0.02):
                    raise self._borg.error(child.said())
                if time.monotonic() > deadline:
                    raise UnavailableError(f"borg has not mounted {self._name} in {START_PATIENCE:.0f} s")
                # It cannot be asked for its mounts in its last moment.
                with suppress(OSError):
                    if f" {MOUNT} fuse" in Path(f"/proc/{child.pid}/mounts").read_text():
                        break
            self._descriptor = self._open_file(child.pid)
        except BaseException:
            child.close()
            raise
        self._child = child
        return self._descriptor

    def _open_file(self, pid: int) -> int:
        """The file in another mount namespace, seen through a process in it."""
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(f"/proc/{pid}/root{MOUNT}/{self._path}", flags)
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._borg.repository}::{self._archive} has no file {self._path}") from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UsageError(f"{self._name} is a symbolic link") from error
            raise UnavailableError(f"cannot open {self._name}: {error.strerror}") from error
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            # A read must meet no chunk but its own.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
            return descriptor
        os.close(descriptor)
        raise UsageError(f"{self._name} is not a regular file")

    def _unmount(self, grace: float = 0) -> None:
        if self._child is not None:
            _close(self._descriptor)
            self._child.close(grace)
            self._child = None

    def _watch(self) -> None:
        """End a borg that does not answer: nothing else ends a read of a FUSE file system."""
        while not self._ended.wait(min(1.0, PATIENCE / 2)):
            began, child = self._began, self._child
            if began is not None and child is not None and time.monotonic() - began > PATIENCE:
                child.kill()

    def close(self) -> None:
        """End borg, and with it the mount."""
        self._open = False
        self._ended.set()
        if not self._turn.acquire(blocking=False):
            child = self._child
            if child is not None:
                child.kill()
            self._turn.acquire()
        try:
            self._unmount(END_PATIENCE)
        finally:
            self._turn.release()


def _close(descriptor: int) -> None:
    """Close a file whose file system may be gone, which `close` tells after it has closed it."""
    with suppress(OSError):
        os.close(descriptor)


def open(uri: str, password_file: Path | None) -> Source:
    """Open an image of an archive; repositories without encryption have no password."""
    parsed = SourceUri.parse(uri)
    archive, path = parsed.require("archive", "path")
    place = PurePosixPath(path.lstrip("/"))
    if not place.parts or ".." in place.parts or "/" in archive:
        raise UsageError(f"{uri} names no file of an archive")
    if any(sign in f"{parsed.path} {archive}" for sign in ("::", "{", "}")):
        raise UnsupportedError(f"borg reads more than a name in `::`, `{{` and `}}`: {parsed.path}::{archive}")
    if os.geteuid() != 0:
        raise UnsupportedError("borg sources need root, to mount")
    if not parsed.path.exists():
        raise NotFoundError(f"there is no borg repository {parsed.path}")
    password = None if password_file is None else read_secret(password_file)
    return BorgImage(Borg(parsed.path, password), archive, str(place))
