"""What a tree of files needs so that it boots from a disk of its own: an fstab that fits, a menu, the boot loaders.

The tree is a guest's: nothing of it is run, and what is read is bounded.
"""

from __future__ import annotations

import re
import shlex
import uuid
from dataclasses import dataclass, field

from livemount._native import FileTree

FSTAB = "etc/fstab"
MENU = "boot/grub/grub.cfg"
LONGEST_TEXT = 1 << 20
FOLDERS = {"dev": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}
"""Mount points that a backup may have left out."""
OWN_NAMES = re.compile(r"(UUID|LABEL|PARTUUID|PARTLABEL)=|/dev/(?!shm)")
"""How an fstab names disks of the machine."""
INITRDS = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}")


@dataclass(frozen=True)
class BootPlan:
    """How the synthesised file system is called, and which of its files are other than the tree's."""

    uuid: uuid.UUID
    label: str
    files: dict[str, bytes] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)


def plan_boot(tree: FileTree) -> BootPlan:
    """Look at a tree. One that is no system's root is left as it is: it becomes a disk of data."""
    fstab = _text(tree, FSTAB)
    root = _root_entry(fstab)
    name = (root[0] if root else "").replace('"', "")
    named = re.fullmatch(r"UUID=([0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})", name)
    # The old file system's name, where it has one: initrds and menus that name it go on to be right.
    own = uuid.UUID(named[1]) if named else uuid.uuid5(uuid.NAMESPACE_OID, tree.id)
    labelled = re.fullmatch(r"LABEL=([\x21-\x7e]{1,16})", name)
    label = labelled[1] if labelled else "root"
    kernels = _kernels(tree)
    if not kernels and not fstab:
        return BootPlan(own, label)
    files = {}
    fixed = _fixed_fstab(fstab, own)
    if fixed != fstab:
        files[FSTAB] = fixed.encode()
    menu = _text(tree, MENU)
    separate = any(len(words) > 1 and words[1] == "/boot" for words in map(str.split, fstab.splitlines()))
    if kernels and (separate or str(own) not in menu.lower()):
        files[MENU] = _menu(tree, kernels, own).encode()
    return BootPlan(own, label, files, FOLDERS)


def _text(tree: FileTree, path: str) -> str:
    content = tree.read(path.encode(), LONGEST_TEXT)
    return "" if content is None else content.decode(errors="surrogateescape")


def _root_entry(fstab: str) -> list[str] | None:
    for line in fstab.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith("#") and words[1] == "/":
            return words
    return None


def _fixed_fstab(fstab: str, root: uuid.UUID) -> str:
    """The fstab with the new root; other disks of the machine are not there, so their entries are comments."""
    lines = []
    seen = False
    for line in fstab.splitlines():
        words = line.split()
        if len(words) < 2 or words[0].startswith("#"):
            lines.append(line)
        elif words[1] == "/":
            seen = True
            same = words[0] == f"UUID={root}" and words[2:3] == ["ext4"]
            lines.append(line if same else f"UUID={root} / ext4 errors=remount-ro 0 1")
        elif OWN_NAMES.match(words[0]):
            lines.append(f"# not in this copy: {line}")
        else:
            lines.append(line)
    if not seen:
        lines.append(f"UUID={root} / ext4 errors=remount-ro 0 1")
    return "\n".join(lines) + "\n"


def _kernels(tree: FileTree) -> list[tuple[str, str | None]]:
    """Release and initrd of each kernel in /boot, newest first."""
    names = {name.decode(errors="surrogateescape") for name in tree.names(b"boot")}
    releases = [name.removeprefix("vmlinuz-") for name in names if re.fullmatch(r"vmlinuz-[A-Za-z0-9._+~-]+", name)]
    releases = [release for release in releases if "rescue" not in release]

    def key(release: str) -> list[tuple[bool, int, str]]:
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", release)]

    found = []
    for release in sorted(releases, key=key, reverse=True):
        initrd = next((each.format(release) for each in INITRDS if each.format(release) in names), None)
        found.append((release, initrd))
    return found


def _menu(tree: FileTree, kernels: list[tuple[str, str | None]], root: uuid.UUID) -> str:
    release, initrd = next((each for each in kernels if each[1]), kernels[0])
    lines = [
        "set timeout=0",
        f"menuentry 'Linux {release}' {{",
        f"  search --no-floppy --fs-uuid --set=root {root}",
        f"  linux /boot/vmlinuz-{release} root=UUID={root} ro {_arguments(tree)}".rstrip(),
        *([f"  initrd /boot/{initrd}"] if initrd else []),
        "}",
    ]
    return "\n".join(lines) + "\n"


def _arguments(tree: FileTree) -> str:
    """What the guest's own settings add to the kernel's command line."""
    words: list[str] = []
    for line in _text(tree, "etc/default/grub").splitlines():
        found = re.match(r"\s*GRUB_CMDLINE_LINUX(?:_DEFAULT)?=(.*)", line)
        if found:
            try:
                words += " ".join(shlex.split(found[1], comments=True)).split()
            except ValueError:
                continue
    plain = [word for word in words if re.fullmatch(r"[A-Za-z0-9._,:/=@+-]+", word)]
    return " ".join(word for word in plain if not word.startswith(("root=", "resume=", "rd.lvm", "rd.luks")))
