"""A policy from its YAML file; what is wrong is told with the file, the line and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from livemount.core.errors import UsageError
from livemount.media.sources.file import read_error
from livemount.policies.policy import Policy

LONGEST = 1 << 20
"""Bytes of a file."""
HINT = "docs/policies.md shows a full example; `livemount policy schema` prints the schema"


def read_policy(file: Path) -> Policy:
    """The policy in a file. Raises `UsageError`, `NotFoundError`, `DeniedError`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LONGEST + 1)
    except OSError as error:
        raise read_error(file, error) from error
    if len(data) > LONGEST:
        raise UsageError(f"{file} has more than {LONGEST} bytes: it is no policy")
    return parse_policy(data, str(file))


def parse_policy(data: bytes, place: str) -> Policy:
    """The policy in these bytes; `place` is what messages call them."""
    try:
        for event in yaml.parse(data, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise _wrong(place, _line(event.start_mark), "", "an alias; put a text that begins with * in quotes")
        root = yaml.compose(data, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise _wrong(place, _line(root and root.start_mark), "", "is no mapping of fields")
        _no_repeats(root, place, "")
        value = yaml.load(data, yaml.SafeLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        raise _wrong(place, _line(getattr(error, "problem_mark", None)), "", f"is no YAML: {problem}") from error
    except (ValueError, RecursionError) as error:  # of the loader: a date that cannot be, too many levels
        raise _wrong(place, None, "", f"is no YAML: {error}") from error
    try:
        return Policy.model_validate(value)
    except ValidationError as error:
        raise _invalid(place, root, error) from error


def _invalid(place: str, root: yaml.Node, error: ValidationError) -> UsageError:
    """All that is wrong, one line each."""
    texts = []
    for each in error.errors(include_url=False):
        node, field = root, []
        for part in each["loc"]:
            field.append(str(part))
            node = _below(node, part) or node
        message = "there is no such field" if each["type"] == "extra_forbidden" else each["msg"]
        message = message.removeprefix("Value error, ")
        texts.append(_text(place, _line(node.start_mark), ".".join(field), message[:1].lower() + message[1:]))
    return UsageError("\n".join(texts), hint=HINT)


def _below(node: yaml.Node, part: Any) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                # Of a field that should not be there, and of one with a block below, its own line is the one to see.
                return value if isinstance(value, (yaml.MappingNode, yaml.SequenceNode)) else key
    elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        found: yaml.Node = node.value[part]
        return found
    return None


def _no_repeats(node: yaml.Node, place: str, path: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            field = f"{path}{key.value}" if isinstance(key, yaml.ScalarNode) else path
            if field in seen:
                raise _wrong(place, _line(key.start_mark), field, "is there twice")
            seen.add(field)
            _no_repeats(value, place, f"{field}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _no_repeats(item, place, f"{path}{number}.")


def _line(mark: Any) -> int | None:
    return None if mark is None else int(mark.line) + 1


def _text(place: str, line: int | None, field: str, problem: str) -> str:
    return f"{place}{f', line {line}' if line else ''}: {f'{field}: ' if field else ''}{problem}"


def _wrong(place: str, line: int | None, field: str, problem: str) -> UsageError:
    return UsageError(_text(place, line, field, problem), hint=HINT)
