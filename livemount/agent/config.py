"""What an agent serves and where, as its configuration file says: nothing else can be opened through it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator

from livemount.core.errors import DeniedError, LivemountError, NotFoundError, UnsupportedError, UsageError
from livemount.core.machine import Frozen
from livemount.core.quota import QuotaText
from livemount.media.agents import PORT
from livemount.media.registry import HOST, SourceUri
from livemount.media.sources.restic import parse

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names of exports and repositories: without a slash, which parts a repository from what is in it."""
SNAPSHOT = r"[0-9a-f]{8,64}"
LARGEST_CONFIGURATION = 1 << 20


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError(f"{path} is no absolute path")
    return path


def _place(place: Path | str) -> Path | str:
    if "://" not in str(place):
        return _absolute(Path(place))
    parsed, found = parse(str(place))
    if not isinstance(found, str) or parsed.options or parsed.scheme.partition("+")[0] != "restic":
        raise ValueError(f"{place} is no repository: a folder, or restic+s3://HOST/BUCKET/PREFIX and the like")
    return found


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Name = Annotated[str, Field(pattern=NAME)]


class ExportConfig(Frozen):
    """One source under one name."""

    source: str
    """Its URI."""
    password_file: AbsolutePath | None = None
    identity: str | None = Field(default=None, pattern=r"^[0-9a-f]{32,128}$")
    """Names the content instead of what the source says: by it, several agents agree that they serve the same."""
    cache: bool = True
    """Whether what was read is kept in the agent's cache."""

    @field_validator("source")
    @classmethod
    def _uri(cls, uri: str) -> str:
        if uri.startswith("agent:"):
            raise ValueError("an agent does not serve another agent's source")
        return uri


class RepositoryConfig(Frozen):
    """A repository, all of whose copies are served: as `NAME/SNAPSHOT/FILE`."""

    repository: Annotated[Path | str, AfterValidator(_place)]
    """Its folder, or its URI."""
    password_file: AbsolutePath
    cache: bool = True

    def uri(self, rest: str) -> str:
        """The URI of `SNAPSHOT/FILE`. Raises `NotFoundError` for what cannot be a file of a snapshot."""
        parts = re.fullmatch(rf"({SNAPSHOT})(/[^\0]+)", rest)
        if parts is None or ".." in parts[2].split("/"):
            raise NotFoundError(f"{rest!r} names no file of a snapshot")
        return str(self._source({"snapshot": parts[1], "file": parts[2]}))

    def has(self, uri: str) -> bool:
        """Whether the URI is of a copy in this repository."""
        return uri.startswith(f"{self._source({})}?")

    def _source(self, options: dict[str, str]) -> SourceUri:
        if isinstance(self.repository, Path):
            return SourceUri("restic", self.repository, options)
        return replace(SourceUri.parse(self.repository, host=True), options=options)

    def export(self, name: str, uri: str) -> str:
        """The name of the export of a copy's URI, in the repository called `name`.

        Raises `UnsupportedError` for another kind of copy.
        """
        parsed, _ = parse(uri)
        if parsed.scheme.partition("+")[0] != "restic" or set(parsed.options) != {"snapshot", "file"}:
            raise UnsupportedError(f"agents do not serve {parsed.scheme} sources of a repository")
        return f"{name}/{parsed.options['snapshot']}{parsed.options['file']}"


class AgentConfig(Frozen):
    """The whole configuration."""

    listen: str = f"0.0.0.0:{PORT}"  # whoever connects must show a certificate
    """Address and port."""
    certificates: AbsolutePath
    """Folder with `ca-cert.pem`, `server-cert.pem`, `server-key.pem`."""
    state: AbsolutePath = Path("/var/lib/livemount-agent")
    """The agent's own folder: its cache, and which copies it has pinned."""
    cache_quota: QuotaText = "10GiB"
    """Room of the cache: bytes, with a unit, or a part of its file system; 0 keeps nothing."""
    exports: dict[Name, ExportConfig] = Field(default_factory=dict)
    repositories: dict[Name, RepositoryConfig] = Field(default_factory=dict)

    @field_validator("listen")
    @classmethod
    def _address(cls, text: str) -> str:
        split_address(text)
        return text

    def password_of(self, uri: str) -> Path | None:
        """The password file of a source that is served, by its URI."""
        for export in self.exports.values():
            if export.source == uri:
                return export.password_file
        for repository in self.repositories.values():
            if repository.has(uri):
                return repository.password_file
        return None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return split_address(self.listen)


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[HOST]:PORT`. Raises `ValueError`."""
    parts = re.fullmatch(rf"(?:\[([0-9A-Fa-f:.]+)\]|({HOST})):([0-9]{{1,5}})", text)
    if parts is None or not 0 < int(parts[3]) < 1 << 16 or (parts[2] and ":" in parts[2]):
        raise ValueError(f"{text!r} is no address with a port, such as 10.0.0.5:{PORT}")
    return parts[1] or parts[2], int(parts[3])


def load(file: Path) -> AgentConfig:
    """Read a configuration. Raises `NotFoundError`, `DeniedError`, `UsageError` that names the field."""
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(LARGEST_CONFIGURATION + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {file}", hint="docs/media-agent.md shows one") from error
    except OSError as error:
        raise DeniedError(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no text") from error
    if len(text) > LARGEST_CONFIGURATION:
        raise UsageError(f"{file} is too long for a configuration")
    try:
        return AgentConfig.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise UsageError(f"{file}: {where}: {first['msg']}") from error
    except LivemountError as error:
        raise UsageError(f"{file}: {error.message}", hint=error.hint) from error
