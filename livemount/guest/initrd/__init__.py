"""The kinds of initrd: what each distribution's tool calls its files, and how it is told to keep our segment.

A new kind is a file here and a line in `KINDS`.
"""

from __future__ import annotations

from livemount.guest.initrd import initramfs_tools
from livemount.guest.initrd.kind import Initrd, InitrdKind

KINDS: tuple[InitrdKind, ...] = (initramfs_tools.KIND,)

__all__ = ["KINDS", "Initrd", "InitrdKind"]
