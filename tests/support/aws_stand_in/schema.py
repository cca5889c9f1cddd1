"""What properties a resource of `pulumi_aws` may have, read from the SDK's own classes, and what is wrong with some."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from importlib import import_module
from typing import Any

import pulumi
import pulumi_aws
from pulumi._types import is_input_type
from pulumi.runtime.rpc import _RESOURCE_MODULES, UNKNOWN

PLAIN: dict[type, tuple[type, ...]] = {str: (str,), bool: (bool,), int: (int,), float: (int, float)}


class Property(typing.NamedTuple):
    """One property: its type's hint and whether it must be there."""

    hint: Any
    required: bool


def arguments_of(token: str) -> type:
    """The class of a resource's inputs, for `aws:ec2/vpc:Vpc`, say. Raises `KeyError` for a token the SDK has not."""
    assert pulumi_aws
    package, module, _ = token.split(":")
    for known in _RESOURCE_MODULES[f"{package}:{module}"]:
        info = typing.cast(Any, known).mod_info
        name = info["classes"][token]
        own = import_module(getattr(import_module(info["fqn"]), name).__module__)
        # The other name is where a nested type has the usual one.
        found: type = getattr(own, f"{name}InitArgs", None) or getattr(own, f"{name}Args")
        return found
    raise KeyError(token)


@cache
def properties_of(arguments: type) -> dict[str, Property]:
    """By their wire names."""
    required = {
        name
        for name, parameter in inspect.signature(arguments.__init__).parameters.items()  # type: ignore[misc]
        if name != "__self__" and parameter.default is parameter.empty
    }
    names = vars(import_module(arguments.__module__))
    found = {}
    for name, member in vars(arguments).items():
        if isinstance(member, property) and member.fget is not None:
            # The SDK's `Input` names `Output` and its own variable without saying where they are.
            known = {"Output": pulumi.Output, "T": type(None)}
            hint = typing.get_type_hints(member.fget, globalns=dict(names), localns=known)["return"]
            wire = getattr(member.fget, "_pulumi_name", name)
            found[wire] = Property(hint, name in required)
    return found


def problems(arguments: type, values: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, str]]:
    """The property, and what is wrong with it."""
    known = properties_of(arguments)
    for name, value in values.items():
        if name not in known:
            yield where or name, f"{where}{name} is no property of {arguments.__name__}"
        elif not matches(known[name].hint, value):
            yield where or name, f"{where}{name} cannot be {value!r}: {known[name].hint}"
    for name, wanted in known.items():
        if wanted.required and values.get(name) is None:
            yield where or name, f"{where}{name} is missing"


def matches(hint: Any, value: Any) -> bool:
    """Whether a value is of a hinted type."""
    if value == UNKNOWN or hint is Any:
        return True
    if hint in PLAIN:
        return isinstance(value, PLAIN[hint]) and (hint is bool or not isinstance(value, bool))
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or isinstance(hint, typing.__dict__.get("UnionType", ())):
        return any(matches(part, value) for part in parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(matches(parts[1], item) for item in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list) and all(matches(parts[0], item) for item in value)
    if hint is type(None):
        return value is None
    if isinstance(hint, type) and issubclass(hint, Enum):
        return value in [member.value for member in hint]
    if isinstance(hint, type) and is_input_type(hint):
        return isinstance(value, Mapping) and not list(problems(hint, value))
    return False
