"""Opens a source by its URI: the scheme names the module in `livemount.media.sources` that knows how.

Adding a source is adding a module there, with a function `open(uri, password_file)` and, when retention may remove
what it reads, `pin` and `unpin`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol, cast, runtime_checkable
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

from livemount.core.errors import UnsupportedError, UsageError
from livemount.media import sources
from livemount.media.source import Source


@dataclass(frozen=True)
class SourceUri:
    """A source's URI: `SCHEME:///ABSOLUTE/PATH?OPTION=VALUE&...`."""

    scheme: str
    path: Path
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> SourceUri:
        """Raises `UsageError` for anything but a URI of an absolute, normal path on this machine."""
        try:
            parts = urlsplit(text)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")
            path = unquote_to_bytes(parts.path).decode()
        except ValueError as error:
            raise UsageError(f"{text!r} is no source URI: {error}") from error
        if not parts.scheme or parts.netloc or parts.fragment:
            raise UsageError(f"{text!r} is no source URI", hint="for example file:///images/web01.raw")
        if not path.startswith("/") or "\0" in text + path or ".." in PurePosixPath(path).parts:
            raise UsageError(f"the path of {text!r} is not an absolute path without `..`")
        if len(dict(pairs)) != len(pairs):
            raise UsageError(f"{text!r} names an option twice")
        return cls(parts.scheme, Path(path), dict(pairs))

    def require(self, *names: str) -> list[str]:
        """The values of exactly these options. Raises `UsageError` when one is missing or there are others."""
        if set(self.options) != set(names):
            raise UsageError(
                f"{self} has the options {sorted(self.options)}", hint=f"it must have exactly {sorted(names)}"
            )
        return [self.options[name] for name in names]

    def __str__(self) -> str:
        query = urlencode(self.options, safe="/")
        return f"{self.scheme}://{quote(str(self.path))}" + (f"?{query}" if query else "")


class SourceModule(Protocol):
    """What a module in `livemount.media.sources` offers."""

    def open(self, uri: SourceUri, password_file: Path | None) -> Source:
        """Open the source that `uri` names."""


@runtime_checkable
class PinningModule(Protocol):
    """What a module offers as well, whose sources are subject to retention."""

    def pin(self, uri: SourceUri, holder: str, reason: str) -> None:
        """Keep it from being removed."""

    def unpin(self, uri: SourceUri, holder: str) -> None:
        """Let it be removed again."""


def schemes() -> list[str]:
    """The schemes that `open_source` knows."""
    return sorted(module.name for module in pkgutil.iter_modules(sources.__path__))


def open_source(uri: str, password_file: Path | None) -> Source:
    """Open a source. `password_file` holds the password of sources that have one.

    Raises `UsageError` for a malformed URI, `UnsupportedError` for an unknown scheme, `NotFoundError`,
    `DeniedError` for a wrong password, `CorruptError`, `UnavailableError`.
    """
    parsed = SourceUri.parse(uri)
    return _module(parsed).open(parsed, password_file)


def pin_source(uri: str, holder: str, reason: str) -> None:
    """Keep what `uri` names from being removed by retention, where it is subject to one, until `unpin_source`.

    `holder` names who needs it, `reason` tells people. Raises `NotFoundError` when it is gone, `ConflictError`.
    """
    parsed = SourceUri.parse(uri)
    module = _module(parsed)
    if isinstance(module, PinningModule):
        module.pin(parsed, holder, reason)


def unpin_source(uri: str, holder: str) -> None:
    """Undo `pin_source`; nothing happens when there is no pin."""
    parsed = SourceUri.parse(uri)
    module = _module(parsed)
    if isinstance(module, PinningModule):
        module.unpin(parsed, holder)


def _module(uri: SourceUri) -> SourceModule:
    if uri.scheme not in schemes():
        raise UnsupportedError(f"there is no source for {uri.scheme!r}", hint=f"known are {', '.join(schemes())}")
    return cast(SourceModule, importlib.import_module(f"{sources.__name__}.{uri.scheme}"))
