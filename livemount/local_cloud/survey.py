"""What there is of a cloud on this machine, found without its records: namespaces, devices, processes.

Namespaces are known by the mark on their devices or by their names in the records; processes by the cloud's folder on
their command line, or by being in such a namespace.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from livemount.local_cloud import namespace, process


@dataclass(frozen=True)
class Found:
    """What was found of a cloud."""

    namespaces: list[str]
    devices: list[tuple[str, str]]
    """Namespace and device; loopback devices do not count."""
    processes: dict[int, str]
    """pid: what it is: its machine's or network's folder, or else the namespace it is in."""


def survey(root: Path, mark: str, named: Collection[str]) -> Found:
    """Look for all that is of the cloud below `root` whose devices bear `mark` or are in one of the `named`."""
    spaces: list[str] = []
    devices: list[tuple[str, str]] = []
    for each in namespace.names():
        inside = namespace.devices(each)
        if each in named or any(device.get("ifalias") == mark for device in inside.values()):
            spaces.append(each)
            devices += [(each, device) for device in inside if device != "lo"]
    inodes = {namespace.inode(each): each for each in spaces}
    processes: dict[int, str] = {}
    for pid in process.find(lambda _: True):
        if (folder := _folder(pid, root)) is not None:
            processes[pid] = folder
        elif (inside_of := inodes.get(process.network(pid))) is not None:
            processes[pid] = inside_of
    return Found(spaces, devices, processes)


def _folder(pid: int, root: Path) -> str | None:
    """The folder of the network or machine the process is for, relative to the root."""
    for word in process.command_line(pid):
        option, _, value = word.partition("=")
        path = Path(value)
        if option in ("--conf-file", "guest") and path.is_relative_to(root) and len(path.parts) > len(root.parts) + 1:
            return "/".join(path.relative_to(root).parts[:2])
    return None
