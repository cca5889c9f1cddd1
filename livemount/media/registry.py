"""Opens a source by its URI: the modules in `livemount.media.sources` say which schemes they know.

Adding a source is adding a module there, with `SCHEMES`, a function `open(uri, password_file)` and, when retention may
remove what it reads, `pin` and `unpin`; when it can tell what differs between two snapshots, `changes`.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Protocol, cast, runtime_checkable
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit

from livemount.core.errors import UnsupportedError, UsageError
from livemount.media import sources
from livemount.media.source import Source

HOST = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]+:[0-9A-Fa-f:.]*"
"""A name or an address; of IPv6 without the brackets that it has in a URI."""


@dataclass(frozen=True)
class SourceUri:
    """A source's URI: `SCHEME:///ABSOLUTE/PATH?OPTION=VALUE&...`, of some also `SCHEME://HOST:PORT/...`."""

    scheme: str
    path: Path
    options: Mapping[str, str]
    host: str = ""
    port: int | None = None

    @classmethod
    def parse(cls, text: str, *, host: bool = False) -> SourceUri:
        """Raises `UsageError` for anything but a URI of an absolute, normal path: on this machine, or on a `host`.

        A user name or password in the URI is refused: URIs are shown and stored.
        """
        try:
            parts = urlsplit(text)
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), errors="strict")
            path = unquote_to_bytes(parts.path).decode()
            name, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise UsageError(f"{text!r} is no source URI: {error}") from error
        if "@" in parts.netloc:
            raise UsageError(
                f"a {parts.scheme} URI has a user or password in it", hint="secrets go by the password file"
            )
        if not parts.scheme or parts.fragment or bool(parts.netloc) != host:
            example = "nbd://10.0.0.5:10809/web01" if host else "file:///images/web01.raw"
            raise UsageError(f"{text!r} is no source URI", hint=f"for example {example}")
        if host and (not re.fullmatch(HOST, name) or port == 0):
            raise UsageError(f"{text!r} names no host: {parts.netloc!r}")
        if not path.startswith("/") or "\0" in text + path or ".." in PurePosixPath(path).parts:
            raise UsageError(f"the path of {text!r} is not an absolute path without `..`")
        if len(dict(pairs)) != len(pairs):
            raise UsageError(f"{text!r} names an option twice")
        if any("\0" in part for pair in pairs for part in pair):
            raise UsageError(f"an option of {text!r} has a zero byte")
        return cls(parts.scheme, Path(path), dict(pairs), name, port)

    def require(self, *names: str, optional: tuple[str, ...] = ()) -> list[str]:
        """The values of exactly these options, then of the `optional` ones, empty where they are not given.

        Raises `UsageError` when one is missing, or there are others.
        """
        given = set(self.options)
        if not set(names) <= given <= {*names, *optional}:
            also = f", and may have {sorted(optional)}" if optional else ""
            raise UsageError(
                f"{self} has the options {sorted(given)}", hint=f"it must have exactly {sorted(names)}{also}"
            )
        return [self.options.get(name, "") for name in (*names, *optional)]

    def __str__(self) -> str:
        query = urlencode(self.options, safe="/")
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = f":{self.port}" if self.port is not None else ""
        return f"{self.scheme}://{host}{port}{quote(str(self.path))}" + (f"?{query}" if query else "")


class SourceModule(Protocol):
    """What a module in `livemount.media.sources` offers. It imports what is heavy when it opens a source."""

    SCHEMES: tuple[str, ...]

    def open(self, uri: str, password_file: Path | None) -> Source:
        """Open the source that `uri` names."""


@runtime_checkable
class PinningModule(Protocol):
    """What a module offers as well, whose sources are subject to retention."""

    def pin(self, uri: str, holder: str, reason: str, password_file: Path | None) -> None:
        """Keep it from being removed."""

    def unpin(self, uri: str, holder: str, password_file: Path | None) -> None:
        """Let it be removed again."""


@runtime_checkable
class ComparingModule(Protocol):
    """What a module offers as well, whose sources tell what differs between two of them."""

    def changes(self, before: str, after: str, password_file: Path | None) -> Iterator[tuple[int, int]]:
        """Offset and length of what differs, in order."""


def _names() -> list[str]:
    return [found.name for found in pkgutil.iter_modules(sources.__path__)]


def _import(name: str) -> SourceModule:
    return cast(SourceModule, importlib.import_module(f"{sources.__name__}.{name}"))


@cache
def _modules() -> dict[str, SourceModule]:
    modules: dict[str, SourceModule] = {}
    for name in _names():
        module = _import(name)
        modules |= dict.fromkeys(module.SCHEMES, module)
    return modules


def schemes() -> list[str]:
    """The schemes that `open_source` knows."""
    return sorted(_modules())


def open_source(uri: str, password_file: Path | None) -> Source:
    """Open a source. `password_file` holds the password of sources that have one.

    Raises `UsageError` for a malformed URI, `UnsupportedError` for an unknown scheme or content, `NotFoundError`,
    `DeniedError` for a wrong password, `CorruptError`, `UnavailableError`.
    """
    return _module(uri).open(uri, password_file)


def named(uri: str) -> str:
    """The URI with a new identity, that no other content has, where it needs one and has none."""
    parts = urlsplit(uri)
    if parts.scheme not in ("nbd", "nbds", "nbd+unix") or "identity=" in parts.query:
        return uri
    return f"{uri}{'&' if parts.query else '?'}identity={secrets.token_hex(16)}"


def changes_between(before: str, after: str, password_file: Path | None) -> Iterator[tuple[int, int]]:
    """Offset and length in bytes of what differs between two sources that are snapshots of one disk, in order.

    Raises `UnsupportedError` for sources that cannot tell, `UsageError` for two that have nothing in common, and what
    `open_source` raises.
    """
    module = _module(after)
    if module is not _module(before) or not isinstance(module, ComparingModule):
        raise UnsupportedError(
            f"what differs between {before} and {after} cannot be told", hint="two ebs:// or two azure:// snapshots can"
        )
    return module.changes(before, after, password_file)


def pin_source(uri: str, holder: str, reason: str, password_file: Path | None = None) -> None:
    """Keep what `uri` names from being removed by retention, where it is subject to one, until `unpin_source`.

    `holder` names who needs it, `reason` tells people. Raises `NotFoundError` when it is gone, `ConflictError`, and for
    a repository elsewhere what opening it raises.
    """
    module = _module(uri)
    if isinstance(module, PinningModule):
        module.pin(uri, holder, reason, password_file)


def unpin_source(uri: str, holder: str, password_file: Path | None = None) -> None:
    """Undo `pin_source`; nothing happens when there is no pin."""
    module = _module(uri)
    if isinstance(module, PinningModule):
        module.unpin(uri, holder, password_file)


def _module(uri: str) -> SourceModule:
    scheme, colon, _ = uri.partition("://")
    if not colon or not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise UsageError(f"{uri!r} is no source URI", hint="for example file:///images/web01.raw")
    # Most are named like their scheme: the others' libraries, which each worker would need memory for, stay out.
    name = scheme.partition("+")[0]
    if name in _names() and scheme in _import(name).SCHEMES:
        return _import(name)
    if scheme not in _modules():
        raise UnsupportedError(f"there is no source for {scheme!r}", hint=f"known are {', '.join(schemes())}")
    return _modules()[scheme]
