"""The table of results, with the machine and the versions it was made with."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.harness import ROUNDS, Figure
from livemount.core.errors import LivemountError
from livemount.core.run import run
from livemount.core.settings import Settings

VERSIONS = {
    "tgt": ["tgtadm", "--version"],
    "restic": ["restic", "version"],
    "borg": ["borg", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "nbdfuse": ["nbdfuse", "--version"],
    "QEMU": ["qemu-system-x86_64", "--version"],
    "Pulumi": ["pulumi", "version"],
}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@functools.cache
def machine() -> tuple[str, ...]:
    """What was measured on, and with which versions; looked at once."""
    return tuple(_look_at_machine())


def _look_at_machine() -> Iterator[str]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    yield f"{os.cpu_count()} x {_processor()}, {memory:.0f} GiB"
    yield f"Linux {platform.release()}, Python {platform.python_version()}"
    environment = {**os.environ, "PATH": f"{Settings().cache / 'pulumi-bin'}:{os.environ.get('PATH', os.defpath)}"}
    for name, words in VERSIONS.items():
        try:
            yield f"{name}: {run(*words, env=environment).stdout.splitlines()[0]}"
        except (LivemountError, IndexError):
            yield f"{name}: not installed"
    commit = run("git", "describe", "--always", "--dirty", cwd=Path(__file__).parent, check=False).stdout.strip()
    yield f"livemount: {commit or 'not a checkout'}"


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """The figures as a table in Markdown."""
    yield "| figure | ratio | goal | spread | n | median | compared with | its median | load |"
    yield "|---|---|---|---|---|---|---|---|---|"
    yield from map(_row, figures)


def _row(each: Figure) -> str:
    goal = "" if each.goal is None else f"{each.goal:g} {'reached' if each.reached else 'missed'}"
    return (
        f"| {each.name} | {each.ratio:.2f} | {goal} | {each.spread:.2f} | {each.n} | {each.median:.4g} {each.unit} "
        f"| {each.peer} | {each.peer_median:.4g} {each.unit} | {each.load:.1f} |"
    )


def write_results(path: Path, figures: Sequence[Figure], skipped: Mapping[str, str]) -> None:
    """Write the page of results."""
    lines = [
        "# Results",
        "",
        f"Written by `python -m bench all` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. A ratio above 1 is better"
        " for us; spread is the interquartile range of the rounds' ratios, load the load average at the end.",
        "",
        *(f"- {line}" for line in machine()),
        "",
    ]
    if any(each.n < ROUNDS for each in figures):
        lines += [f"**Preliminary: some figures have fewer than {ROUNDS} rounds.**", ""]
    lines += [f"- not measured: {name}: {' '.join(reason.split())}" for name, reason in skipped.items()]
    lines += ["", *table(figures), ""]
    path.write_text("\n".join(lines))


def update_results(path: Path, bench: str, figures: Sequence[Figure], order: Sequence[str]) -> None:
    """Put the figures of one bench into a page that there is, in place of those that it has of it.

    `order` are the benches as they come in the page. What these figures were made with is told in a line of their own.
    """
    lines = path.read_text().splitlines()
    told = f"- {bench}: measured anew"
    lines = [line for line in lines if not line.startswith((f"| {bench}/", told, f"- not measured: {bench}"))]
    rows = [number for number, line in enumerate(lines) if line.startswith("| ")]
    place = {name: number for number, name in enumerate(order)}
    after = [number for number in rows[1:] if place.get(lines[number][2:].partition("/")[0], 0) < place[bench]]
    at = (after[-1] if after else rows[0] + 1) + 1
    lines[at:at] = map(_row, figures)
    # The list of the machine and the versions is the page's first list.
    first = next(number for number, line in enumerate(lines) if line.startswith("- "))
    end = next(number for number in range(first, len(lines)) if not lines[number].startswith("- "))
    few = f"; preliminary: fewer than {ROUNDS} rounds" if any(each.n < ROUNDS for each in figures) else ""
    lines.insert(end, f"{told} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC with {'; '.join(machine())}{few}")
    path.write_text("\n".join(lines) + "\n")
