"""A guest's /etc/fstab: what it says, and how it must be changed for a boot elsewhere.

fstab(5) has the fields; systemd.mount(5) `nofail`, `_netdev` and `x-systemd.device-timeout`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from livemount.guest.disk import Disk

NEEDED = ("/", "/usr")
"""Without these nothing starts: that they are missing is not to be passed over."""
WAIT = "10s"
"""How long a boot waits for a device that was not there when the guest was prepared."""
KINDS = ("UUID=", "LABEL=", "PARTUUID=", "/dev/disk/by-uuid/", "/dev/disk/by-label/", "/dev/disk/by-partuuid/")
KERNEL_NAME = re.compile(r"/dev/(?:(?:sd|hd|vd|xvd)[a-z]+[0-9]*|(?:nvme|mmcblk)[0-9]\S*)")
FIELDS = re.compile(r"\s*(\S+)\s+(\S+)\s+(\S+)(?:\s+(\S+))?")


@dataclass(frozen=True)
class Entry:
    """A line of it that mounts something."""

    device: str
    place: str
    kind: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Mended:
    """The new text, and what was found."""

    text: str
    changes: tuple[str, ...]
    """One line a kind of change, for people."""
    warnings: tuple[str, ...]


def parse(text: str) -> list[Entry]:
    """The entries, in order."""
    return [entry for line in text.splitlines() if (entry := _entry(line)) is not None]


def mend(text: str, disk: Disk, others: Sequence[Disk]) -> Mended:
    """Let it find its file systems under any hypervisor, and let a boot go on without those that are not in the copy.

    `disk` is the one with the root file system, `others` are the machine's further disks.
    """
    lines, by_uuid, by_network, missing = [], False, [], []
    for line in text.splitlines(keepends=True):
        entry = _entry(line)
        if entry is not None:
            own = disk.named(entry.device)
            if own is not None:
                if entry.device.startswith("/dev/") and own.uuid is not None:
                    line = line.replace(entry.device, f"UUID={own.uuid}", 1)
                    by_uuid = True
            elif any(other.named(entry.device) for other in others):
                if not {"_netdev", "noauto"} & set(entry.options):
                    line = _with_options(line, "_netdev")
                    by_network.append(entry.place)
            elif _is_missing(entry):
                if entry.place in NEEDED:
                    missing.append(f"{entry.place} is on {entry.device}, which is in no disk of the copy")
                elif not {"nofail", "noauto"} & set(entry.options):
                    line = _with_options(line, "nofail", f"x-systemd.device-timeout={WAIT}")
                    what = "swap" if entry.kind == "swap" else entry.place
                    missing.append(f"{what} is on {entry.device}, which is in no disk of the copy: it will be missing")
        lines.append(line)
    changes = []
    if by_uuid:
        changes.append("names file systems by UUID")
    if by_network:
        changes.append(f"{', '.join(by_network)} waits for the network (_netdev): the disk comes by it")
    if any("will be missing" in text for text in missing):
        changes.append("the boot goes on without what is not in the copy (nofail)")
    return Mended("".join(lines), tuple(changes), tuple(missing))


def _entry(line: str) -> Entry | None:
    found = FIELDS.match(line)
    if found is None or found[1].startswith("#"):
        return None
    return Entry(found[1], found[2], found[3], tuple((found[4] or "defaults").split(",")))


def _is_missing(entry: Entry) -> bool:
    """Whether it names a disk in a way that would have found one of the copy."""
    device = entry.device.replace('"', "")
    return device.upper().startswith(KINDS[:3]) or device.startswith(KINDS[3:]) or bool(KERNEL_NAME.fullmatch(device))


def _with_options(line: str, *options: str) -> str:
    found = FIELDS.match(line)
    assert found is not None  # noqa: S101 (it was an entry)
    if found[4] is None:
        return f"{line[: found.end(3)]} {','.join(options)}{line[found.end(3) :]}"
    kept = [] if found[4] == "defaults" else [found[4]]
    return line[: found.start(4)] + ",".join([*kept, *options]) + line[found.end(4) :]
