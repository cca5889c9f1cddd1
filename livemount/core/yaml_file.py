"""A model from its YAML file; what is wrong is told with the file, the line and the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from livemount.core.errors import DeniedError, NotFoundError, UsageError

LONGEST = 1 << 20
"""Bytes of a file."""

Model = TypeVar("Model", bound=BaseModel)


def read_model(file: Path, model: type[Model], hint: str) -> Model:
    """What a file says. Raises `UsageError` (with `hint`), `NotFoundError`, `DeniedError`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(LONGEST + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {file}") from error
    except PermissionError as error:
        raise DeniedError(f"{file} may not be read") from error
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}", hint=hint) from error
    if len(data) > LONGEST:
        raise UsageError(f"{file} has more than {LONGEST} bytes", hint=hint)
    return parse_model(data, str(file), model, hint)


def parse_model(data: bytes, place: str, model: type[Model], hint: str) -> Model:
    """The model in these bytes; `place` is what messages call them. Raises `UsageError`."""
    try:
        for event in yaml.parse(data, yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                alias = "an alias; put a text that begins with * in quotes"
                raise UsageError(_text(place, _line(event.start_mark), "", alias), hint=hint)
        root = yaml.compose(data, yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise UsageError(_text(place, _line(root and root.start_mark), "", "is no mapping of fields"), hint=hint)
        if twice := _repeated(root, ""):
            raise UsageError(_text(place, *twice, "is there twice"), hint=hint)
        value = yaml.load(data, yaml.SafeLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or error
        line = _line(getattr(error, "problem_mark", None))
        raise UsageError(_text(place, line, "", f"is no YAML: {problem}"), hint=hint) from error
    except (ValueError, RecursionError) as error:  # of the loader: a date that cannot be, too many levels
        raise UsageError(_text(place, None, "", f"is no YAML: {error}"), hint=hint) from error
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UsageError(_all_that_is_wrong(place, root, error), hint=hint) from error


def _all_that_is_wrong(place: str, root: yaml.Node, error: ValidationError) -> str:
    """One line for each problem."""
    texts = []
    for each in error.errors(include_url=False):
        node, field = root, []
        for part in each["loc"]:
            field.append(str(part))
            node = _below(node, part) or node
        message = "there is no such field" if each["type"] == "extra_forbidden" else each["msg"]
        message = message.removeprefix("Value error, ")
        texts.append(_text(place, _line(node.start_mark), ".".join(field), message[:1].lower() + message[1:]))
    return "\n".join(texts)


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


def _repeated(node: yaml.Node, path: str) -> tuple[int | None, str] | None:
    """The first field that is there twice, with its line."""
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            field = f"{path}{key.value}" if isinstance(key, yaml.ScalarNode) else path
            if field in seen:
                return _line(key.start_mark), field
            seen.add(field)
            if found := _repeated(value, f"{field}."):
                return found
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            if found := _repeated(item, f"{path}{number}."):
                return found
    return None


def _line(mark: Any) -> int | None:
    return None if mark is None else int(mark.line) + 1


def _text(place: str, line: int | None, field: str, problem: str) -> str:
    return f"{place}{f', line {line}' if line else ''}: {f'{field}: ' if field else ''}{problem}"
