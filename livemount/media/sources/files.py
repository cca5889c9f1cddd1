"""`files:///REPOSITORY?snapshot=ID&path=PATH`: a disk synthesised from a folder of a snapshot of a restic repository.

`files+s3://...` and so on for one elsewhere, as `restic+s3`.
Copies that livemount made of files, and whole systems that restic backed up (`path=/`). Only metadata is written, into
a sparse file without a name; a read of a file's data recalls that chunk, checked by its MAC and its SHA-256.
"""

from __future__ import annotations

from pathlib import Path

from livemount.media.source import Source
from livemount.media.sources.restic import (
    ELSEWHERE,
    ResticImage,
    open_repository,
    parse,
    pin_snapshot,
    unpin_snapshot,
    whole_id,
)

SCHEMES = ("files", *(f"files+{kind}" for kind in ELSEWHERE))


def open(uri: str, password_file: Path | None) -> Source:
    """Synthesise the disk of a folder."""
    # Imported late: it runs programs, which no other source does when it is opened.
    from livemount.media.files.layout import synthesise

    parsed, place = parse(uri)
    snapshot, path = parsed.require("snapshot", "path")
    repository = open_repository(place, password_file)
    tree = repository.file_tree(whole_id(repository, snapshot, place), Path(path))
    return ResticImage(synthesise(tree))


def pin(uri: str, holder: str, reason: str, password_file: Path | None) -> None:
    """Keep the snapshot from being forgotten by us."""
    parsed, place = parse(uri)
    snapshot, _ = parsed.require("snapshot", "path")
    pin_snapshot(place, snapshot, holder, reason, password_file)


def unpin(uri: str, holder: str, password_file: Path | None) -> None:
    """Let the snapshot be forgotten again."""
    unpin_snapshot(parse(uri)[1], holder, password_file)
