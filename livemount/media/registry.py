"""From a source's URI to the source."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from livemount.core.errors import UsageError
from livemount.media.source import Source


def open_source(uri: str, password_file: Path | None = None) -> Source:  # noqa: ARG001
    """Open the source a URI names."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise UsageError(f"{uri!r} is not a source's URI")
    from livemount.media.raw import RawSource

    return RawSource(Path(unquote(parts.path)))
