"""`python -m bench NAME [--json]`, `python -m bench all` (writes bench/RESULTS.md)."""

from __future__ import annotations

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Protocol, cast

from bench.harness import ROUNDS, Figure
from bench.results import table, write_results
from bench.rig import Options
from livemount.core.errors import LivemountError

BENCHES = ("hits", "cold", "boot", "latency", "memory", "scale")


class Bench(Protocol):
    """What a module of this package that is a bench offers."""

    def measure(self, options: Options) -> Iterator[Figure]:
        """Measure; each figure as soon as it is there."""


def figures(name: str, options: Options) -> Iterator[Figure]:
    """The figures of one bench."""
    return cast(Bench, importlib.import_module(f"bench.{name}")).measure(options)


def end(number: int, _frame: FrameType | None) -> None:
    """End, taking the rig away; a second signal must not disturb that."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> int:
    """Parse the arguments and measure."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("name", choices=[*BENCHES, "all"])
    parser.add_argument("--json", action="store_true", help="one line of JSON a figure, as soon as it is there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fewer than %(default)s only to try the bench")
    parser.add_argument("--seconds", type=float, default=5, help="length of one measurement of a steady load")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="local file system to measure on")  # noqa: S108
    parser.add_argument("--results", type=Path, default=Path(__file__).with_name("RESULTS.md"), help="for `all`")
    parser.add_argument("--verbose", action="store_true", help="log each round")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO if arguments.verbose else logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("rounds and seconds must be positive")
    signal.signal(signal.SIGTERM, end)
    options = Options(directory=arguments.directory, rounds=arguments.rounds, seconds=arguments.seconds)
    done: list[Figure] = []
    skipped: dict[str, str] = {}
    for name in BENCHES if arguments.name == "all" else [arguments.name]:
        try:
            for figure in figures(name, options):
                done.append(figure)
                if arguments.json:
                    print(figure.line(), flush=True)
        except LivemountError as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            skipped[name] = str(error)
    if not arguments.json:
        print("\n".join(table(done)))
    if arguments.name == "all":
        write_results(arguments.results, done, skipped)
    return 1 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())
