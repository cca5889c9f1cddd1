"""A disk of any NBD server: `nbd://HOST[:PORT]/EXPORT?identity=NAME`, `nbds://...`, `nbd+unix:///EXPORT?socket=PATH&...`.

NBD tells nothing that names a content, so the user does: `identity` is any text, and whoever gives it promises that
the bytes under it are the same for ever. Recall stores are shared by it: a changed disk needs another one.

`bitmap=NAME` asks for a dirty bitmap of QEMU's as well: a backup then reads what it names.

`nbds` is TLS, by a pre-shared key when there is a password file (one line `USER:HEXKEY`, as of psktool), else by
certificates: the system's authorities, or `certificates=FOLDER` with `ca-cert.pem` and, where the server asks for
one, `client-cert.pem` and `client-key.pem`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from livemount.core.errors import DeniedError, NotFoundError, UnavailableError, UsageError
from livemount.core.secrets import read_secret
from livemount.media.nbd_export import Dial, NbdExport
from livemount.media.registry import SourceUri
from livemount.media.source import Extent, Source

SCHEMES = ("nbd", "nbds", "nbd+unix")
PORT = 10809
CHUNK = 64 << 10
TLS_REQUIRE = 2


class NbdDisk:
    """A `Source` over an NBD export."""

    def __init__(self, export: NbdExport, identity: str, bitmap: str) -> None:
        self._export = export
        self.bitmap = bitmap
        facts = ("nbd", identity, export.size, export.sample)
        self._identity = hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._export.size

    @property
    def identity(self) -> str:
        """Made of the user's word, the size, and the first and last bytes."""
        return self._identity

    @property
    def chunk_size(self) -> int:
        """64 KiB: the protocol tells no better."""
        return CHUNK

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the server says is zero."""
        return self._export.extents(offset, length)

    def changed(self) -> list[tuple[int, int]]:
        """What the dirty bitmap of the running QEMU names."""
        return self._export.changed()

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        return self._export.read(offset, length)

    def close(self) -> None:
        """Let go of the connections."""
        self._export.close()


def open(uri: str, password_file: Path | None) -> Source:
    """Connect to a server; a password file is the pre-shared key of `nbds`."""
    unix, tls = uri.startswith("nbd+unix:"), uri.startswith("nbds:")
    parsed = SourceUri.parse(uri, host=not unix)
    if not parsed.options.get("identity"):
        raise UsageError(
            f"{uri} does not say which content it is",
            hint="add identity=NAME; give another content another name, for blocks are kept by it",
        )
    if unix:
        identity, socket, bitmap = parsed.require("identity", "socket", optional=("bitmap",))
        start = _unix(Path(socket))
    elif tls:
        identity, certificates, bitmap = parsed.require("identity", optional=("certificates", "bitmap"))
        start = with_tls(tcp(parsed.host, parsed.port or PORT), password_file, certificates)
    else:
        identity, bitmap = parsed.require("identity", optional=("bitmap",))
        start = tcp(parsed.host, parsed.port or PORT)
    if not tls and password_file is not None:
        raise UsageError(f"{uri} has no password", hint="nbds:// takes a pre-shared key")
    name = str(parsed.path)[1:]

    def dial(handle: Any) -> None:
        handle.set_export_name(name)
        start(handle)

    place = f"of {socket}" if unix else f"of {parsed.host}"
    return NbdDisk(NbdExport(f"NBD export {name!r} {place}", dial, bitmap=bitmap), identity, bitmap)


def _unix(socket: Path) -> Dial:
    if not socket.is_absolute():
        raise UsageError(f"the socket {socket} is no absolute path")

    def start(handle: Any) -> None:
        if not socket.exists():
            raise UnavailableError(f"there is no socket {socket}", hint="is the NBD server running?")
        handle.aio_connect_unix(str(socket))

    return start


def tcp(host: str, port: int) -> Dial:
    """Connects to an address."""
    return lambda handle: handle.aio_connect_tcp(host, str(port))


def with_tls(start: Dial, key_file: Path | None, certificates: str) -> Dial:
    """Sets up TLS, required and verified, by a pre-shared key or a folder of certificates, before it connects."""
    user = ""
    if key_file is not None:
        if certificates:
            raise UsageError("TLS is by a pre-shared key (the password file) or by certificates, not both")
        user, colon, key = read_secret(key_file).partition(":")
        if not (user and colon and re.fullmatch(r"(?:[0-9A-Fa-f]{2})+", key)):
            raise DeniedError(f"{key_file} holds no pre-shared key", hint="one line: USER:HEXKEY, as of psktool")
    folder = Path(certificates) if certificates else None
    if folder is not None:
        if not folder.is_absolute():
            raise UsageError(f"the folder {folder} is no absolute path")
        if not (folder / "ca-cert.pem").is_file():
            raise NotFoundError(f"there is no {folder / 'ca-cert.pem'}")
        if (folder / "client-key.pem").exists():
            read_secret(folder / "client-key.pem")

    def secured(handle: Any) -> None:
        handle.set_tls(TLS_REQUIRE)
        if key_file is not None:
            handle.set_tls_psk_file(str(key_file))
            handle.set_tls_username(user)
        else:
            handle.set_tls_verify_peer(True)
            if folder is not None:
                handle.set_tls_certificates(str(folder))
        start(handle)

    return secured
