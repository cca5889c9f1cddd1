"""The checks of `livemount doctor`: each a small function that looks at one thing and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module

from livemount.core.errors import LivemountError
from livemount.core.machine import Frozen

TOPICS = ("programs", "kernel", "bindings", "cache", "resources")
"""The modules of this package with checks, in the order they are shown."""


class Check(Frozen):
    """What a check found."""

    name: str
    ok: bool
    detail: str
    """What is there, or what is missing."""
    way_out: str | None = None
    """What to do about it; `None` when all is well."""


Checker = Callable[[], str]
"""Returns what is there; raises a `LivemountError` with what is missing and, as its hint, the way out."""

_checkers: dict[str, Checker] = {}


def check(name: str) -> Callable[[Checker], Checker]:
    """Register a function as the check of that name."""

    def register(checker: Checker) -> Checker:
        _checkers[name] = checker
        return checker

    return register


def names() -> list[str]:
    """The names of all checks, in the order they are shown."""
    for topic in TOPICS:
        import_module(f"livemount.doctor.{topic}")
    return list(_checkers)


def checks(only: Iterable[str] | None = None) -> list[Check]:
    """Run the checks, or those named in `only`. One that fails in an unforeseen way does not stop the others."""
    return [_run(name, _checkers[name]) for name in names() if only is None or name in only]


def _run(name: str, checker: Checker) -> Check:
    try:
        return Check(name=name, ok=True, detail=checker())
    except LivemountError as error:
        return Check(name=name, ok=False, detail=error.message, way_out=error.hint or "run `make setup`")
    except OSError as error:
        return Check(name=name, ok=False, detail=str(error), way_out="run `make setup`")
