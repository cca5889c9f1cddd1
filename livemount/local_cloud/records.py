"""The cloud's records: one JSON file for each network, interface and machine, below the cloud's folder.

A record is written before the thing it names is made, and removed after the thing is gone: so whatever exists has a
record, and a caller that died in between leaves a record whose thing is looked for, not believed. Files are replaced
atomically.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from livemount.core.errors import CorruptError
from livemount.core.machine import Frozen

R = TypeVar("R", bound=Frozen)


class Records(Generic[R]):
    """The records of one kind in `folder`."""

    def __init__(self, folder: Path, kind: type[R]) -> None:
        self._folder = folder
        self._kind = kind

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def read(self, name: str) -> R | None:
        """The record, or `None`. Raises `CorruptError` for a file that is not one."""
        path = self._path(name)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return self._kind.model_validate_json(text)
        except ValidationError as error:
            raise CorruptError(f"the record {path} cannot be read: {error}") from error

    def write(self, name: str, record: R) -> None:
        """Write or replace the record; it is on the disk on return."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self._path(name).with_suffix(".new")
        with new.open("w") as file:
            file.write(record.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path(name))
        self._sync()

    def remove(self, name: str) -> None:
        """Remove the record, if it is there."""
        if self._path(name).exists():
            self._path(name).unlink()
            self._sync()

    def names(self) -> list[str]:
        """The names of all records, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def all(self) -> dict[str, R]:
        """All records by name."""
        found = ((name, self.read(name)) for name in self.names())
        return {name: record for name, record in found if record is not None}

    def _sync(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
