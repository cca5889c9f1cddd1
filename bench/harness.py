"""What every bench shares: interleaved rounds, and figures made of them.

The contestants of a comparison run in turns, each round in another order, so that what else the machine does meets all
of them. A figure is the median of the rounds' ratios, never the ratio of two separate runs.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

ROUNDS = 5
"""The fewest rounds a published figure may have."""


@dataclass(frozen=True)
class Figure:
    """One result. `ratio` above 1 is better for us, whatever is measured."""

    name: str
    ratio: float
    median: float
    """Our own value, in `unit`."""
    spread: float
    """Interquartile range of the rounds' ratios: half of the rounds are within it."""
    n: int
    """Rounds."""
    unit: str
    peer: str
    """What the ratio compares to."""
    peer_median: float
    goal: float | None
    """The ratio to reach; none where the project set itself no goal."""
    load: float
    """Load average of the last minute at the end of the run: what else the machine did."""

    def line(self) -> str:
        """The figure as one line of JSON."""
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(self).items()}
        return json.dumps(rounded)

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; none when there is none."""
        return None if self.goal is None else self.ratio >= self.goal


def interquartile_range(values: Sequence[float]) -> float:
    """The range of the middle half of the values (inclusive method, so that it lies within them); 0 for one value."""
    if len(values) < 2:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return upper - lower


def figure(
    name: str,
    ours: Sequence[float],
    peer: Sequence[float],
    *,
    unit: str,
    peer_name: str,
    goal: float | None = None,
    lower_is_better: bool = False,
) -> Figure:
    """Compare two contestants round by round. Raises `ValueError` when a round is missing or a value not positive."""
    if len(ours) != len(peer) or not ours:
        raise ValueError(f"{name}: {len(ours)} rounds of ours, {len(peer)} of {peer_name}")
    if min(*ours, *peer) <= 0:
        raise ValueError(f"{name}: a measured value is not positive")
    ratios = [(b / a if lower_is_better else a / b) for a, b in zip(ours, peer, strict=True)]
    return Figure(
        name=name,
        ratio=statistics.median(ratios),
        median=statistics.median(ours),
        spread=interquartile_range(ratios),
        n=len(ratios),
        unit=unit,
        peer=peer_name,
        peer_median=statistics.median(peer),
        goal=goal,
        load=os.getloadavg()[0],
    )


def interleave(contestants: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """Measure each contestant once a round; the first one of a round changes, so that none always follows another."""
    names = list(contestants)
    results: dict[str, list[Result]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            began = time.monotonic()
            value = contestants[name]()
            log.info("round %d of %d: %s: %s, after %.1f s", number + 1, rounds, name, value, time.monotonic() - began)
            results[name].append(value)
    return results
