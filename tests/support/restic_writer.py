"""Writes snapshots of any nodes into a repository of restic's format: also those that no backup program would write."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from cryptography.hazmat.primitives.poly1305 import Poly1305

KINDS = {"data": 0, "tree": 1}
"""Of blobs, in the header of a pack."""


class Key:
    """AES-256-CTR with Poly1305-AES."""

    def __init__(self, encrypt: bytes, k: bytes, r: bytes) -> None:
        self._encrypt, self._k, self._r = encrypt, k, r

    def _crypt(self, nonce: bytes, text: bytes) -> bytes:
        coder = Cipher(AES(self._encrypt), CTR(nonce)).encryptor()
        return coder.update(text) + coder.finalize()

    def seal(self, text: bytes) -> bytes:
        """Encrypted, with its nonce and MAC."""
        nonce = os.urandom(16)
        sealed = self._crypt(nonce, text)
        once = Cipher(AES(self._k), ECB()).encryptor().update(nonce)  # noqa: S305  (of one block, as Poly1305-AES says)
        return nonce + sealed + Poly1305.generate_tag(self._r + once, sealed)

    def open(self, sealed: bytes) -> bytes:
        """What was sealed; its MAC is not looked at."""
        return self._crypt(sealed[:16], sealed[16:-16])


def master_key(repository: Path, password: str) -> Key:
    """The key of a repository that has this password."""
    (file,) = (repository / "keys").iterdir()
    facts = json.loads(file.read_bytes())
    salt, data = base64.b64decode(facts["salt"]), base64.b64decode(facts["data"])
    cost = {"n": facts["N"], "r": facts["r"], "p": facts["p"]}
    user = hashlib.scrypt(password.encode(), salt=salt, dklen=64, maxmem=1 << 30, **cost)
    master = json.loads(Key(user[:32], user[32:48], user[48:]).open(data))
    mac = master["mac"]
    return Key(*(base64.b64decode(part) for part in (master["encrypt"], mac["k"], mac["r"])))


class SnapshotWriter:
    """Collects blobs, then writes them as one pack, with its index and a snapshot."""

    def __init__(self, repository: Path, key: Key) -> None:
        self._repository = repository
        self._key = key
        self._blobs: dict[tuple[str, str], bytes] = {}
        self.lies: dict[str, dict[str, Any]] = {}
        """What the index says of a blob that is not so, by its id."""

    def _blob(self, kind: str, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        self._blobs.setdefault((kind, name), self._key.seal(content))
        return name

    def data(self, content: bytes) -> str:
        """A chunk."""
        return self._blob("data", content)

    def tree(self, nodes: Sequence[dict[str, Any]]) -> str:
        """A folder."""
        return self._blob("tree", json.dumps({"nodes": nodes}).encode())

    def _write(self, folder: str, content: bytes) -> str:
        name = hashlib.sha256(content).hexdigest()
        place = self._repository / folder / (name[:2] if folder == "data" else "") / name
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(content)
        return name

    def snapshot(self, root: str) -> str:
        """Write everything; the id of the snapshot whose root is this folder."""
        offset, header, told = 0, b"", []
        for (kind, name), sealed in self._blobs.items():
            header += struct.pack("<BI", KINDS[kind], len(sealed)) + bytes.fromhex(name)
            fact = {"id": name, "type": kind, "offset": offset, "length": len(sealed)}
            told.append(fact | self.lies.get(name, {}))
            offset += len(sealed)
        ending = self._key.seal(header)
        pack = self._write("data", b"".join(self._blobs.values()) + ending + struct.pack("<I", len(ending)))
        self._write("index", self._key.seal(json.dumps({"packs": [{"id": pack, "blobs": told}]}).encode()))
        facts = {"time": "2024-01-02T03:04:05Z", "tree": root, "paths": ["/"], "hostname": "h", "username": "u"}
        return self._write("snapshots", self._key.seal(json.dumps(facts).encode()))
