"""Decompresses what lies in a guest (initrds, kernel modules), with a bound on what comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from livemount.core.errors import UnsupportedError
from livemount.core.run import run

MAGICS = (
    b"\x1f\x8b",  # gzip
    b"\xfd7zXZ\0",  # xz
    b"\x5d\0\0",  # lzma
    b"\x28\xb5\x2f\xfd",  # zstd
    b"\x02\x21\x4c\x18",  # lz4, legacy frames: what the kernel takes
    b"\x04\x22\x4d\x18",  # lz4
)
"""All that Debian's zstd decompresses."""


def is_packed(head: bytes) -> bool:
    """Whether data that begins with `head` is compressed in a known way."""
    return head.startswith(MAGICS)


def unpack(packed: bytes | memoryview, limit: int, scratch: Path, *, tolerant: bool = False) -> bytes:
    """Decompress. `tolerant`: what came out before trouble counts (an initrd may have other data behind it).

    Raises `UnsupportedError` when it cannot be decompressed, or to more than `limit` bytes.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        source, result = Path(name) / "packed", Path(name) / "plain"
        with source.open("wb") as file:
            file.write(packed)
        # By a file and not by a pipe: `run` takes text. `--stdout` keeps what came out before an error.
        done = run(
            *("sh", "-c", 'exec prlimit "--fsize=$1" zstd --decompress --quiet --stdout "$2" >"$3"', "sh"),
            *(str(limit), source, result),
            check=False,
            timeout=120,
        )
        plain = result.read_bytes() if result.exists() else b""
        if len(plain) >= limit:
            raise UnsupportedError(f"compressed data in the guest holds more than {limit} bytes")
        if done.returncode != 0 and not (tolerant and plain):
            raise UnsupportedError(f"compressed data in the guest cannot be decompressed: {done.stderr.strip()}")
        return plain
