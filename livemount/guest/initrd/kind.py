"""What is known of a kind of initrd."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from livemount.guest.rooted import Root

KERNEL = r"(?P<kernel>[0-9][A-Za-z0-9.+~_-]{0,120})"
"""A kernel's release as it stands in file names."""


@dataclass(frozen=True)
class Initrd:
    """An initrd of an installed kernel."""

    path: str
    kernel: str


@dataclass(frozen=True)
class InitrdKind:
    """A tool that makes initrds."""

    name: str
    tool: str
    """A file that is there when the tool is installed."""
    pattern: re.Pattern[str]
    """Names of its files in /boot, with a group `kernel`."""
    keep: Callable[[Root], bool]
    """Tell the tool to keep the segment when it makes an initrd anew; whether anything had to change."""

    def find(self, root: Root) -> list[Initrd]:
        """The initrds of kernels whose modules are installed."""
        if not root.is_file(self.tool):
            return []
        found = []
        for name in root.names("/boot"):
            match = self.pattern.fullmatch(name)
            if match and root.is_folder(f"/lib/modules/{match['kernel']}"):
                found.append(Initrd(f"/boot/{name}", match["kernel"]))
        return found
