"""Pulumi's property values as plain Python values and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pulumi.provider.experimental.property_value import Computed, PropertyValue
from pulumi.runtime.rpc import UNKNOWN

type_error = "a {kind} cannot be a property of this resource"


def to_plain(value: PropertyValue) -> Any:
    """A property as a plain value. A value that is not known yet (in a preview) becomes Pulumi's sentinel `UNKNOWN`."""
    inner = value.value
    if isinstance(inner, Computed):
        return UNKNOWN
    if inner is None or isinstance(inner, bool | str):
        return inner
    if isinstance(inner, float):
        return int(inner) if inner.is_integer() else inner
    if isinstance(inner, Mapping):
        return {key: to_plain(item) for key, item in inner.items()}
    if isinstance(inner, tuple):
        return [to_plain(item) for item in inner]
    raise TypeError(type_error.format(kind=type(inner).__name__))


def from_plain(value: Any) -> PropertyValue:
    """A plain value (what JSON can say) as a property."""
    if value is None or isinstance(value, bool | str):
        return PropertyValue(value)
    if isinstance(value, int | float):
        return PropertyValue(float(value))
    if isinstance(value, Mapping):
        return PropertyValue(map_from_plain(value))
    if isinstance(value, Sequence):
        return PropertyValue([from_plain(item) for item in value])
    raise TypeError(type_error.format(kind=type(value).__name__))


def map_to_plain(properties: Mapping[str, PropertyValue]) -> dict[str, Any]:
    """All properties of a resource, those that are null left out: an input that is null was not given."""
    return {key: to_plain(value) for key, value in properties.items() if value.value is not None}


def map_from_plain(values: Mapping[str, Any]) -> dict[str, PropertyValue]:
    """All properties of a resource, those that are `None` left out."""
    return {key: from_plain(value) for key, value in values.items() if value is not None}


def is_known(value: Any) -> bool:
    """Whether a plain value holds nothing that is only known later."""
    if isinstance(value, Mapping):
        return all(is_known(item) for item in value.values())
    if isinstance(value, list):
        return all(is_known(item) for item in value)
    return bool(value != UNKNOWN)
