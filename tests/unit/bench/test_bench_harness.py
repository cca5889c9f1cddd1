"""The statistics of the benches, and the order of their rounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.harness import figure, interleave, interquartile_range
from bench.results import write_results


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    made = figure("x", [10, 20, 90], [10, 10, 100], unit="IO/s", peer_name="p", goal=0.95)
    assert (made.ratio, made.median, made.peer_median, made.n) == (1.0, 20, 10, 3)
    assert made.reached
    assert made.spread == pytest.approx(0.55)


def test_lower_is_better_turns_the_ratio_round() -> None:
    made = figure("x", [2.0], [10.0], unit="s", peer_name="limit", goal=6, lower_is_better=True)
    assert made.ratio == 5
    assert made.reached is False


def test_one_round_has_no_spread_and_no_goal_is_neither_reached_nor_missed() -> None:
    made = figure("x", [2.0], [4.0], unit="s", peer_name="p")
    assert (made.spread, made.reached) == (0.0, None)


def test_interquartile_range_is_within_the_values() -> None:
    assert interquartile_range([1, 2, 3, 4, 100]) == 2
    assert interquartile_range([1, 2]) == 0.5


@pytest.mark.parametrize(("ours", "peer"), [([1.0], [1.0, 2.0]), ([], []), ([0.0], [1.0]), ([1.0], [-1.0])])
def test_what_cannot_be_compared_is_refused(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(ValueError, match="x"):
        figure("x", ours, peer, unit="s", peer_name="p")


def test_rounds_are_interleaved_and_begin_with_another_each_time() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    values = interleave({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert values == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_line_has_what_is_promised() -> None:
    line = json.loads(figure("x", [1.0] * 5, [3.0] * 5, unit="s", peer_name="p").line())
    assert {key: line[key] for key in ("name", "ratio", "median", "spread", "n")} == {
        "name": "x",
        "ratio": 0.3333,
        "median": 1.0,
        "spread": 0.0,
        "n": 5,
    }


def test_results_tell_what_was_not_measured_and_what_is_preliminary(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"
    few = figure("few", [1.0], [1.0], unit="s", peer_name="p", goal=2)
    write_results(page, [few], {"cold": "needs borg"})
    assert "Preliminary" in page.read_text()
    assert "cold: needs borg" in page.read_text()
    assert "2 missed" in page.read_text()
    write_results(page, [figure("x", [1.0] * 5, [1.0] * 5, unit="s", peer_name="p")], {})
    assert "Preliminary" not in page.read_text()
