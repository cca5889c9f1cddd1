"""`python -m bench NAME... [--json] [--update]`, `python -m bench all [--skip NAME...]` (writes bench/RESULTS.md)."""

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
from bench.results import table, update_results, write_results
from bench.rig import Options
from livemount.core.errors import LivemountError

log = logging.getLogger(__name__)

BENCHES = ("hits", "latency", "memory", "scale", "backup", "index", "cold", "boot")
"""In the order of `all`: the longest last."""


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


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="+", choices=[*BENCHES, "all"], metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--skip", nargs="+", choices=BENCHES, default=[], metavar="NAME", help="for `all`")
    parser.add_argument("--json", action="store_true", help="one line of JSON a figure, as soon as it is there")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="fewer than %(default)s only to try the bench")
    parser.add_argument(
        "--seconds", type=float, default=2, help="length of one measurement of a steady load (%(default)g)"
    )
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="local file system to measure on")  # noqa: S108
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).with_name("RESULTS.md"), help="the page of results"
    )
    parser.add_argument("--update", action="store_true", help="put the figures into the page of results that there is")
    parser.add_argument("--verbose", action="store_true", help="log each round")
    parsed = parser.parse_args()
    if parsed.rounds < 1 or parsed.seconds <= 0:
        parser.error("rounds and seconds must be positive")
    return parsed


def main() -> int:
    """Parse the arguments and measure. A bench that fails is named, and the others go on."""
    parsed = arguments()
    everything = "all" in parsed.names
    logging.basicConfig(level=logging.INFO if parsed.verbose else logging.WARNING)
    for noisy in ("httpx", "sh", "dbos"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, end)
    options = Options(directory=parsed.directory, rounds=parsed.rounds, seconds=parsed.seconds)
    done: list[Figure] = []
    failed: dict[str, str] = {}
    left_out = dict.fromkeys(parsed.skip, "skipped")
    for name in [name for name in BENCHES if name not in left_out] if everything else parsed.names:
        mine: list[Figure] = []
        try:
            for figure in figures(name, options):
                mine.append(figure)
                if parsed.json:
                    print(figure.line(), flush=True)
        except LivemountError as error:
            failed[name] = str(error)
        except Exception as error:
            log.exception("bench %s", name)
            failed[name] = f"{type(error).__name__}: {error}"
        done += mine
        if name in failed:
            print(f"bench {name}: {failed[name]}", file=sys.stderr)
        if everything:
            # After each, so that a run that is cut short leaves what it has.
            write_results(parsed.results, done, {**failed, **left_out})
        elif parsed.update and name not in failed:
            update_results(parsed.results, name, mine, BENCHES)
    if not parsed.json:
        print("\n".join(table(done)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
