"""Our errors as one text and back: Pulumi's engine carries nothing but text from a provider to whoever runs it."""

from __future__ import annotations

import re

from livemount.core.errors import ExitCode, LivemountError, error_of

_PATTERN = re.compile(r"^\[(?P<kind>[a-z-]+)\] (?P<message>.*?)(?:\nHint: (?P<hint>.*?))?\s*\Z", re.DOTALL)


def describe(error: LivemountError) -> str:
    """What is shown of an error: `[kind] message`, and the hint on a line of its own."""
    kind = error.exit_code.name.lower().replace("_", "-")
    return f"[{kind}] {error.message}" + (f"\nHint: {error.hint}" if error.hint else "")


def parse(text: str) -> LivemountError | None:
    """The error that `describe` has described; `None` for any other text."""
    match = _PATTERN.match(text.strip())
    if match is None:
        return None
    name = match["kind"].upper().replace("-", "_")
    if name not in ExitCode.__members__:
        return None
    return error_of(ExitCode[name], match["message"].strip(), match["hint"])
