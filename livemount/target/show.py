"""Reads what tgtd shows of its targets (`tgtadm --mode target --op show`).

Source of the layout: tgt 1.0.85, usr/target.c and usr/iscsi/session.c. The text is indented by four spaces a level.
Initiator names and aliases in it come from the network: a line counts by its indentation and key only, and what does
not fit is skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TARGET = re.compile(r"Target (\d+): (\S+)$")
INITIATOR = re.compile(r"Initiator: (\S+) alias: ")


@dataclass
class Nexus:
    """One session: `sid` as tgtd wants it back, and its connections."""

    sid: int
    initiator: str = ""
    address: str = ""
    connections: list[int] = field(default_factory=list)


@dataclass
class Lun:
    """One LUN: the lines below it, e.g. `Online: Yes`."""

    number: int
    fields: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The backing file's path, "None" without one."""
        return self.fields.get("Backing store path", "None")

    @property
    def usable(self) -> bool:
        """Whether it is online, writable, thin and of the back end that honours SYNCHRONIZE CACHE."""
        wanted = {"Online": "Yes", "Readonly": "No", "Thin-provisioning": "Yes", "Backing store type": "rdwr"}
        return wanted.items() <= self.fields.items()


@dataclass
class ShownTarget:
    """One target as tgtd has it."""

    tid: int
    iqn: str
    nexuses: list[Nexus] = field(default_factory=list)
    luns: dict[int, Lun] = field(default_factory=dict)
    accounts: list[str] = field(default_factory=list)
    acl: list[str] = field(default_factory=list)


def parse_targets(text: str) -> list[ShownTarget]:
    """All targets in tgtd's answer."""
    targets: list[ShownTarget] = []
    section = ""
    for line in text.splitlines():
        words = line.strip()
        depth = (len(line) - len(line.lstrip(" "))) // 4
        if depth == 0:
            found = TARGET.match(words)
            if found:
                targets.append(ShownTarget(int(found[1]), found[2]))
            section = ""
        elif depth == 1:
            section = words
        elif targets:
            _read(targets[-1], section, depth, words)
    return targets


def _read(target: ShownTarget, section: str, depth: int, words: str) -> None:
    key, _, value = words.partition(": ")
    if section == "I_T nexus information:":
        _read_nexus(target, depth, words, key, value)
    elif section == "LUN information:":
        if depth == 2 and key == "LUN" and value.isdecimal():
            target.luns[int(value)] = Lun(int(value))
        elif depth == 3 and target.luns:
            target.luns[max(target.luns)].fields[key] = value
    elif section == "Account information:" and depth == 2:
        target.accounts.append(words)
    elif section == "ACL information:" and depth == 2:
        target.acl.append(words)


def _read_nexus(target: ShownTarget, depth: int, words: str, key: str, value: str) -> None:
    if depth == 2 and key == "I_T nexus" and value.isdecimal():
        target.nexuses.append(Nexus(int(value)))
        return
    if not target.nexuses:
        return
    nexus = target.nexuses[-1]
    initiator = INITIATOR.match(words)
    if depth == 3 and initiator and not nexus.initiator:
        nexus.initiator = initiator[1]
    elif depth == 3 and key == "Connection" and value.isdecimal():
        nexus.connections.append(int(value))
    elif depth == 4 and key == "IP Address":
        nexus.address = value
