"""initramfs-tools: Debian, Ubuntu and what derives from them."""

from __future__ import annotations

import re
from importlib.resources import files

from livemount.guest.initrd.kind import KERNEL, InitrdKind
from livemount.guest.rooted import Root

HOOK = "/etc/initramfs-tools/hooks/livemount"


def _keep(root: Root) -> bool:
    return root.write(HOOK, (files("livemount.guest") / "files" / "initramfs-hook.sh").read_bytes(), 0o755)


KIND = InitrdKind(
    name="initramfs-tools",
    tool="/usr/sbin/mkinitramfs",
    pattern=re.compile(rf"initrd\.img-{KERNEL}"),
    keep=_keep,
)
