"""The files of a folder of mounts: all of them are good, or nothing is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from livemount.core.errors import NotFoundError, UsageError
from livemount.core.yaml_file import read_model
from livemount.gitops.spec import MountSpec

HINT = "docs/gitops.md shows full examples; `livemount schema` prints the schema"
SUFFIXES = (".yaml", ".yml")


def files_of(folder: Path) -> list[Path]:
    """The files of mounts in a folder (not in those below it), by name. Raises `NotFoundError`, `UsageError`."""
    if not folder.is_dir():
        raise NotFoundError(f"there is no folder {folder}")
    found = (path for path in folder.iterdir() if path.suffix in SUFFIXES and not path.name.startswith("."))
    return sorted(path for path in found if path.is_file())


def read_files(files: Iterable[Path]) -> dict[Path, MountSpec]:
    """What the files say. Raises `UsageError` with all that is wrong in all of them, one line each."""
    specs: dict[Path, MountSpec] = {}
    wrong: list[str] = []
    for file in files:
        try:
            specs[file] = read_model(file, MountSpec, HINT)
        except UsageError as error:
            wrong.append(error.message)
    named: dict[str, Path] = {}
    for file, spec in specs.items():
        if (other := named.setdefault(spec.name, file)) is not file:
            wrong.append(f"{file}: name: {other} has the mount {spec.name} as well")
    if wrong:
        raise UsageError("\n".join(wrong), hint=HINT)
    return specs


def read_folder(folder: Path, *, allow_empty: bool) -> list[MountSpec]:
    """The mounts of a folder, by their files' names. Raises `UsageError` for one without any, unless that is meant."""
    specs = list(read_files(files_of(folder)).values())
    if not specs and not allow_empty:
        raise UsageError(f"{folder} has no files of mounts", hint="--allow-empty, when that is meant")
    return specs
