"""What happens to a stack while an operation runs on it."""

from __future__ import annotations

from enum import StrEnum

from livemount.core.machine import Frozen


class StackEventKind(StrEnum):
    """What kind of thing happened."""

    BEGUN = "begun"
    DONE = "done"
    WARNING = "warning"
    ERROR = "error"
    RECOVERED = "recovered"


class StackEvent(Frozen):
    """One thing that happened to a resource of a stack."""

    kind: StackEventKind
    resource: str
    """The resource's name in the program, empty when it is about none."""
    type: str
    text: str
    """`create`, `update`, `delete` or `replace`; of a warning, an error and a recovery: what it says."""

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.resource or 'stack'}: {self.text}" + (" done" if self.kind is StackEventKind.DONE else "")
