"""Boot: from the start of a virtual machine to multi-user, and MiB recalled, against the same disk as a plain file.

The guest is the demonstration's on a sparse disk of 20 GiB, of which 0.35 GiB are in use, started from the fixed
machine image by boot script and tgt. All variants are of one round, each with guest preparation before, which is not
part of a boot's time; only in the comparison with a restore it is. `latency` is added to every read of the repository
(`bench.delayed`).

- plain file: the disk, prepared, exported by tgt as it is.
- first mount: nothing recalled, no boot profile. Second mount: of the same copy, while the first is still there.
- later copy with profile: another copy of the machine, after the first mount is gone, with that one's boot profile.
- restored: the copy read back into a sparse file, as fast as our repository can be read, then exported as it is.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.harness import Figure, figure, interleave
from bench.hits import MIB
from bench.place import FIRMWARE, GUEST, Place, add_file, copy_sparse, guest_image, open_place
from bench.repository import Copies, delay
from bench.rig import Options
from livemount.core.machine import MachineDescription
from livemount.core.secrets import secret_file
from livemount.driver.api import PseudoDiskStats
from livemount.host.api import PseudoDiskRequest
from livemount.media.registry import open_source
from livemount.media.repository import Repository
from livemount.media.source import Source

LATENCIES_MS = (0, 20)
PLAIN, RESTORED = "plain file", "restored"
FIRST_GOAL = 1 / 1.2
SECOND_GOAL = 1 / 1.05
RECALLED_GOAL = 0.07
"""Part of the disk."""
CHANGED = 16 * MIB
"""Bytes that were written to the machine between its two copies."""
PIECE = 4 * MIB
READERS = 8


@dataclass(frozen=True)
class Booted:
    """One boot."""

    ready: float
    """Seconds until the machine could be started."""
    boot: float
    """Seconds from the machine's start to multi-user."""
    stats: PseudoDiskStats | None = None
    """Of a mount, when the guest was up."""

    @property
    def whole(self) -> float:
        """Seconds from the request to multi-user."""
        return self.ready + self.boot

    @property
    def recalled(self) -> float:
        """MiB recalled; one chunk at least, so that there is a ratio."""
        return max(self.stats.recalled_bytes if self.stats else 0, 64 << 10) / MIB


def first_mount(latency: int) -> str:
    """The name of this variant."""
    return f"first mount, {latency} ms"


def with_profile(latency: int) -> str:
    """The name of this variant."""
    return f"later copy with profile, {latency} ms"


SECOND = "second mount, 0 ms"


@dataclass(frozen=True)
class Subject:
    """What is booted: the prepared disk as a plain file, and two copies of the machine."""

    plain: Path
    copy: Copies
    later: Copies


def make_subject(place: Place) -> Subject:
    """Make the guest, its copies and the plain disk."""
    folder = place.rig.folder
    disk = copy_sparse(guest_image(), folder / "disk0.raw")
    password_file = secret_file(folder / "password")
    repositories = folder / "repositories"
    repositories.mkdir()
    repository = Repository.init(repositories / "restic", password_file)

    def back_up() -> Copies:
        copy = repository.backup(disk, GUEST, MachineDescription(firmware=FIRMWARE))
        return Copies(folder=repositories, source=copy.source, password_file=password_file, cache=folder / "cache")

    first = back_up()
    content = folder / "later"
    content.write_bytes(os.urandom(CHANGED))
    add_file(disk, content)
    later = back_up()
    disk.unlink()
    plain = copy_sparse(guest_image(), folder / "plain.raw")
    place.prepare(plain)
    return Subject(plain=plain, copy=first, later=later)


def restore(source: Source, to: Path) -> Path:
    """Read a copy into a sparse file, with several readers."""
    with to.open("wb") as file, ThreadPoolExecutor(READERS) as pool:
        file.truncate(source.size)

        def piece(offset: int, length: int) -> None:
            os.pwrite(file.fileno(), source.read(offset, length), offset)

        work = [
            pool.submit(piece, at, min(PIECE, extent.offset + extent.length - at))
            for extent in source.extents(0, source.size)
            if not extent.hole
            for at in range(extent.offset, extent.offset + extent.length, PIECE)
        ]
        for each in work:
            each.result()
    return to


class Boots:
    """The variants of a round."""

    def __init__(self, place: Place, subject: Subject) -> None:
        self._place = place
        self._subject = subject
        self._round = 0

    def plain(self) -> dict[str, Booted]:
        """The plain file, each time as it was made."""
        disk = copy_sparse(self._subject.plain, self._place.rig.folder / "booted.raw")
        return {PLAIN: self._boot_file(disk, 0)}

    def restored(self) -> dict[str, Booted]:
        """Restore, prepare, boot."""
        began = time.monotonic()
        with contextlib.closing(open_source(self._subject.copy.source, self._subject.copy.password_file)) as source:
            disk = restore(source, self._place.rig.folder / "booted.raw")
        self._place.prepare(disk)
        return {RESTORED: self._boot_file(disk, time.monotonic() - began)}

    def _boot_file(self, disk: Path, ready: float) -> Booted:
        with self._place.serving(disk, "one"):
            booted = Booted(ready, self._place.boot("one"))
        disk.unlink()
        return booted

    def mounts(self, latency: int, copy: Copies, later: Copies) -> dict[str, Booted]:
        """First mount, second mount where there is no latency, later copy; each needs what the one before has left."""
        self._round += 1
        profile = f"boot-{latency}-{self._round}"
        found = {first_mount(latency): self._boot_mount("one", copy, profile)}
        if not latency:
            # Without a profile: what it saves would be mixed with the first mount's.
            found[SECOND] = self._boot_mount("two", copy, None)
            self._place.mounts.delete("two")
        self._place.mounts.delete("one")
        found[with_profile(latency)] = self._boot_mount("one", later, profile)
        self._place.mounts.delete("one")
        return found

    def _boot_mount(self, name: str, copies: Copies, profile: str | None) -> Booted:
        request = PseudoDiskRequest(
            source=copies.source,
            password_file=copies.password_file,
            address=self._place.address(name),
            firmware=FIRMWARE,
            profile=profile,
        )
        began = time.monotonic()
        self._place.mounts.put(name, request)
        ready = time.monotonic() - began
        boot = self._place.boot(name)
        return Booted(ready, boot, self._place.rig.driver.state(name).stats)


def compare(rounds: Sequence[Mapping[str, Booted]]) -> Iterator[Figure]:
    """The figures of some rounds, each with all variants."""

    def boots(name: str) -> list[float]:
        return [each[name].boot for each in rounds]

    def against(name: str, peer: str, goal: float | None = None) -> Figure:
        return figure(
            f"boot/{name}", boots(name), boots(peer), unit="s", peer_name=peer, goal=goal, lower_is_better=True
        )

    yield against(first_mount(0), PLAIN, FIRST_GOAL)
    yield against(SECOND, PLAIN, SECOND_GOAL)
    yield against(first_mount(20), PLAIN)
    for latency in LATENCIES_MS:
        yield against(with_profile(latency), first_mount(latency))
    yield figure(
        "boot/request to multi-user, first mount, 0 ms",
        [each[first_mount(0)].whole for each in rounds],
        [each[RESTORED].whole for each in rounds],
        unit="s",
        peer_name="full restore, then boot",
        lower_is_better=True,
    )
    for name in (first_mount(0), SECOND, *(with_profile(latency) for latency in LATENCIES_MS)):
        sizes = [stats.size for each in rounds if (stats := each[name].stats) is not None]
        yield figure(
            f"boot/recalled, {name}",
            [each[name].recalled for each in rounds],
            [size * RECALLED_GOAL / MIB for size in sizes],
            unit="MiB",
            peer_name=f"{RECALLED_GOAL:.0%} of the disk",
            goal=1.0,
            lower_is_better=True,
        )


def measure(options: Options) -> Iterator[Figure]:
    """Rounds of all variants."""
    with open_place(options.directory) as place:
        subject = make_subject(place)
        boots = Boots(place, subject)
        groups: dict[str, Callable[[], dict[str, Booted]]] = {PLAIN: boots.plain, RESTORED: boots.restored}
        for latency in LATENCIES_MS:
            copy = delay(place.rig, subject.copy, latency / 1000)
            groups[f"mounts, {latency} ms"] = partial(boots.mounts, latency, copy, subject.later.moved(copy.folder))
        results = interleave(groups, options.rounds)
    yield from compare(
        [
            {name: booted for group in results.values() for name, booted in group[number].items()}
            for number in range(options.rounds)
        ]
    )
