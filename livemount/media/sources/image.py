"""A qcow2, vmdk, vhd or vhdx image: `image:///PATH?format=FORMAT&snapshot=NAME&backing=FOLDER:FOLDER`, all optional.

`bitmap=NAME` asks for a dirty bitmap of a qcow2 as well: a backup then reads what it names.

`qemu-nbd` serves it, read-only, to this process alone: one child, without network, told every file of the chain. What
it then has open is compared with the chain before a byte is believed. The files must not change meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from livemount.media.child import Child, confined, listening_socket
from livemount.media.image_chain import Layer, inspect, qemu_error, qemu_node
from livemount.media.nbd_export import CONNECTIONS, NbdExport
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source
from livemount.media.sources.file import read_error

SCHEMES = ("image",)
CHUNK = 64 << 10
CHECKED = ("qcow2", "vmdk", "vhdx")
"""The formats whose tables `qemu-img check` can look through."""
CHECK_SECONDS = 600
KEY_ID = "luks"


Fact = tuple[int, int, int, int]
"""Device, inode, size, time of change in ns."""


class Files:
    """The files of a chain, held open, and whether they are as they were."""

    def __init__(self, layers: list[Layer]) -> None:
        self._descriptors: list[tuple[Path, int]] = []
        try:
            for path in [path for layer in layers for path in (layer.file, *layer.extents)]:
                self._descriptors.append((path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)))
        except OSError as error:
            self.close()
            raise read_error(path, error) from error
        self.facts = self._look()

    def _look(self) -> list[Fact]:
        found = []
        for _, descriptor in self._descriptors:
            status = os.fstat(descriptor)
            found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return found

    def check(self) -> None:
        """Raises `CorruptError` when one has changed."""
        for (path, _), then, now in zip(self._descriptors, self.facts, self._look(), strict=True):
            if then != now:
                raise CorruptError(
                    f"{path} was changed while it was in use", hint="back it up and mount the copy instead"
                )

    def keys(self) -> set[tuple[int, int]]:
        """Device and inode of each."""
        return {(device, inode) for device, inode, _, _ in self.facts}

    @property
    def identity(self) -> list[tuple[str, *Fact]]:
        """Path and facts of each; the device's number is none, for it may be another after a restart."""
        return [(str(path), 0, *fact[1:]) for (path, _), fact in zip(self._descriptors, self.facts, strict=True)]

    def close(self) -> None:
        """Let go of them."""
        for _, descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()


class Server:
    """`qemu-nbd` for one image, started when it is first needed and again when it has died."""

    def __init__(self, layers: list[Layer], files: Files, snapshot: str, bitmap: str, password: str | None) -> None:
        self._image = layers[0].file
        self._layers = layers
        self._files = files
        self._snapshot = snapshot
        self._bitmap = bitmap
        self._password = password
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._address = -1

    def _words(self, secret: int | None) -> tuple[list[str], str]:
        """The words that name the secret, and the image."""
        node = "json:" + json.dumps(qemu_node(self._layers, KEY_ID))
        return ([] if secret is None else ["--object", f"secret,id={KEY_ID},file=/proc/self/fd/{secret}"]), node

    def _secret(self) -> int | None:
        """A descriptor of an unnamed file with the password."""
        if self._password is None:
            return None
        descriptor = os.memfd_create(KEY_ID, os.MFD_CLOEXEC)
        os.write(descriptor, self._password.encode())
        return descriptor

    def check_tables(self) -> None:
        """Look through the tables of each image of the chain.

        QEMU reads what lies past the end of a file as zeros, so an image that was cut off would give wrong bytes.
        """
        secret = self._secret()
        try:
            for layer in self._layers:
                if layer.format not in CHECKED:
                    continue
                objects = self._words(secret)[0] if layer.encrypted else []
                alone = "json:" + json.dumps(qemu_node([layer], KEY_ID))
                words = confined("qemu-img", "check", "-q", *objects, alone, processor_seconds=CHECK_SECONDS)
                fds = () if secret is None else (secret,)
                done = run(*words, check=False, timeout=2 * CHECK_SECONDS, pass_fds=fds)
                if done.returncode in (0, 3):  # 3: leaked clusters, which do no harm
                    continue
                said = (done.stderr or done.stdout).strip()
                if done.returncode == 2:
                    lines = said.splitlines()
                    raise CorruptError(
                        f"{layer.file} is damaged or cut off: {lines[0] if lines else 'no reason given'}",
                        hint="`qemu-img check` tells all",
                    )
                raise qemu_error(layer.file, said)
        finally:
            if secret is not None:
                os.close(secret)

    def connect(self) -> socket.socket:
        """A connection to the server, which is started when it does not run."""
        with self._lock:
            if self._child is None or not self._child.running:
                self._start()
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(f"/proc/self/fd/{self._address}")
            except OSError as error:
                connection.close()
                raise UnavailableError(f"qemu-nbd does not serve {self._image}: {error.strerror}") from error
            return connection

    def _start(self) -> None:
        self._end()
        self._files.check()
        listener, self._address = listening_socket()
        secret = self._secret()
        objects, node = self._words(secret)
        snapshot = self._snapshot.replace(",", ",,")
        words = ["qemu-nbd", "--read-only", "--persistent", f"--shared={2 * CONNECTIONS}", *objects]
        words += [f"--load-snapshot=snapshot.name={snapshot}"] if snapshot else []
        words += [f"--bitmap={self._bitmap}"] if self._bitmap else []
        try:
            fds = () if secret is None else (secret,)
            # Ours is closed: when the child ends, nobody listens, and who waits for it is told.
            with listener:
                self._child = Child(confined(*words, node), listen=listener, pass_fds=fds)
        finally:
            if secret is not None:
                os.close(secret)

    def check_files(self) -> None:
        """Raises `DeniedError` when the server has other files open than those of the chain."""
        with self._lock:
            if self._child is None or not self._child.running:
                raise UnavailableError(f"qemu-nbd has ended while it opened {self._image}")
            others = self._child.open_files() - self._files.keys()
        if others:
            raise DeniedError(f"{self._image} led qemu-nbd to {len(others)} files that do not belong to it")

    def reason(self, otherwise: LivemountError) -> LivemountError:
        """Why the server has ended, if it has."""
        with self._lock:
            if self._child is None or not self._child.wait(0.2 if isinstance(otherwise, UnavailableError) else 0):
                return otherwise
            said = self._child.said()
        if self._snapshot and "snapshot" in said:
            return NotFoundError(f"{self._image} has no snapshot {self._snapshot!r}")
        if self._bitmap and "is not found" in said:
            return NotFoundError(f"{self._image} has no dirty bitmap {self._bitmap!r}")
        if self._bitmap and "nconsistent" in said:
            return CorruptError(
                f"the dirty bitmap {self._bitmap!r} of {self._image} is not whole: QEMU was killed",
                hint="make a copy without it, and a new bitmap",
            )
        return qemu_error(self._image, said)

    def _end(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
        if self._address >= 0:
            os.close(self._address)
            self._address = -1

    def close(self) -> None:
        """End the server."""
        with self._lock:
            self._end()


class Image:
    """A `Source` over an image."""

    def __init__(self, layers: list[Layer], snapshot: str, bitmap: str, password: str | None) -> None:
        self.bitmap = bitmap
        self._files = Files(layers)
        self._server = Server(layers, self._files, snapshot, bitmap, password)
        facts = ("image", snapshot, [layer.format for layer in layers], self._files.identity)
        self._identity = hashlib.sha256(repr(facts).encode()).hexdigest()
        try:
            self._server.check_tables()
            try:
                self._export = NbdExport(
                    f"image {layers[0].file}",
                    self._dial,
                    read_error=CorruptError,
                    inspect=lambda _: self._server.check_files(),
                    bitmap=bitmap,
                )
            except LivemountError as error:
                raise self._server.reason(error) from error
            self._files.check()
        except BaseException:
            self._server.close()
            self._files.close()
            raise

    def _dial(self, handle: Any) -> None:
        connection = self._server.connect()
        handle.aio_connect_socket(connection.detach())

    @property
    def size(self) -> int:
        """Bytes of the disk in the image."""
        return self._export.size

    @property
    def identity(self) -> str:
        """Made of path, inode, size and time of change of each file of the chain, and of the snapshot's name."""
        return self._identity

    @property
    def chunk_size(self) -> int:
        """64 KiB: the size of clusters in most images."""
        return CHUNK

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What no image of the chain has, and what one has as zeros, is a hole."""
        self._export.check(offset, length)
        self._files.check()
        return self._export.extents(offset, length)

    def changed(self) -> list[tuple[int, int]]:
        """What the dirty bitmap names."""
        self._files.check()
        return self._export.changed()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        self._export.check(offset, length)
        self._files.check()
        return self._export.read(offset, length)

    def close(self) -> None:
        """End the server."""
        self._export.close()
        self._server.close()
        self._files.close()


def open(uri: str, password_file: Path | None) -> Source:
    """Open an image; a password is that of an encrypted qcow2."""
    parsed = SourceUri.parse(uri)
    format, snapshot, backing, bitmap = parsed.require(optional=("format", "snapshot", "backing", "bitmap"))
    if format == "raw":
        raise UsageError(f"{parsed.path} is raw", hint=f"file://{parsed.path}")
    folders = [Path(folder) for folder in backing.split(":") if folder]
    if not all(folder.is_absolute() for folder in folders):
        raise UsageError(f"backing={backing} has a folder without an absolute path")
    layers = inspect(parsed.path, format, folders)
    encrypted = any(layer.encrypted for layer in layers)
    if encrypted and password_file is None:
        raise DeniedError(f"{parsed.path} is encrypted", hint="name the file that holds its password")
    if password_file is not None and not encrypted:
        raise UsageError(f"{uri} has no password")
    if snapshot and layers[0].format != "qcow2":
        raise UnsupportedError(f"an image of the format {layers[0].format} has no snapshots in it")
    if bitmap and (layers[0].format != "qcow2" or snapshot):
        raise UnsupportedError("only a qcow2 image has dirty bitmaps, and its snapshots have none")
    return Image(layers, snapshot, bitmap, read_secret(password_file) if password_file is not None else None)
