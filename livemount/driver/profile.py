"""Boot profiles: which chunks a machine reads first, in order, kept from mount to mount of its copies.

A profile lies next to the recall stores, in `profiles/NAME.profile`, is replaced as a whole and checked when read. It
is a hint only: one that is damaged, or of another chunk size, is ignored. Two mounts that save the same one do not
harm each other, the later one wins.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from livemount.core.files import replace_file

log = logging.getLogger(__name__)

MOST_CHUNKS = 1 << 16
"""Chunks in a profile: 4 GiB of the smallest ones. A larger file is not read."""
MOST_UNUSED = 3
"""Mounts in which a chunk need not be read without being forgotten."""

_MAGIC = b"LMPROF01"
_HEADER = struct.Struct("<8sII")
_ENTRY = struct.Struct("<IB")


def profile_path(recall_directory: Path, name: str) -> Path:
    """Where the profile `name` (see `PseudoDiskSpec.profile`) of a host lies."""
    return recall_directory.parent / "profiles" / f"{name}.profile"


class Profile:
    """The profile of one machine, for disks of one chunk size. Chunks are numbers, in the order of first reads."""

    def __init__(self, path: Path, chunk_size: int) -> None:
        """Reads what is there."""
        self.path = path
        self._chunk_size = chunk_size
        self._unused = self._read()
        self._saved: list[int] = []

    @property
    def chunks(self) -> list[int]:
        """What earlier mounts read, to be recalled in this order."""
        return list(self._unused)

    def _read(self) -> dict[int, int]:
        """Each chunk with the number of mounts, since the last one that read it, that did not."""
        try:
            with self.path.open("rb") as file:
                content = file.read(_HEADER.size + MOST_CHUNKS * _ENTRY.size + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("boot profile %s is ignored: %s", self.path, error)
            return {}
        magic, chunk_size, checksum = _HEADER.unpack_from(content.ljust(_HEADER.size, b"\0"))
        entries = content[_HEADER.size :]
        if magic != _MAGIC or len(entries) % _ENTRY.size or zlib.crc32(entries) != checksum:
            log.warning("boot profile %s is ignored: it is damaged", self.path)
            return {}
        if chunk_size != self._chunk_size:
            log.info("boot profile %s is ignored: its chunks have %d bytes", self.path, chunk_size)
            return {}
        return dict(_ENTRY.iter_unpack(entries))

    def save(self, first_reads: list[int], *, complete: bool) -> None:
        """Put this mount's first reads before those of earlier mounts.

        A chunk that several mounts in a row did not read is forgotten, but a mount that read far less than the ones
        before (it was ended at once, say) makes nothing forgotten. `complete` says that these are first reads since
        the disk was attached: others come last.
        """
        if first_reads == self._saved:
            return
        forgets = complete and 2 * len(first_reads) >= len(self._unused)
        read = dict.fromkeys(first_reads, 0)
        earlier = {
            chunk: unused + forgets
            for chunk, unused in self._unused.items()
            if chunk not in read and unused + forgets <= MOST_UNUSED
        }
        if complete:
            merged = read | earlier
        else:
            merged = {chunk: read.get(chunk, earlier.get(chunk, 0)) for chunk in [*self._unused, *first_reads]}
        self._write(list(merged.items())[:MOST_CHUNKS])
        self._saved = first_reads

    def _write(self, entries: Iterable[tuple[int, int]]) -> None:
        content = b"".join(_ENTRY.pack(*entry) for entry in entries)
        self.path.parent.mkdir(exist_ok=True)
        replace_file(self.path, _HEADER.pack(_MAGIC, self._chunk_size, zlib.crc32(content)) + content)
