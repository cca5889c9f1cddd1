"""One bench's figures replace its own in the page of results, and nothing else."""

from __future__ import annotations

from pathlib import Path

from bench.harness import Figure, figure
from bench.results import update_results, write_results

ORDER = ("hits", "backup", "cold")


def named(name: str, value: float, rounds: int = 5) -> Figure:
    return figure(name, [value] * rounds, [1.0] * rounds, unit="s", peer_name="p")


def page(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.startswith("| ")][1:]


def names(path: Path) -> list[str]:
    return [line.split(" | ")[0].removeprefix("| ") for line in page(path)]


def test_figures_come_in_the_order_of_the_benches(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    write_results(path, [named("hits/a", 1), named("hits/b", 1), named("cold/a", 1)], {"backup": "skipped"})
    update_results(path, "backup", [named("backup/a", 2), named("backup/b", 2)], ORDER)
    assert names(path) == ["hits/a", "hits/b", "backup/a", "backup/b", "cold/a"]
    text = path.read_text()
    assert "not measured" not in text
    assert text.count("- backup: measured anew") == 1
    update_results(path, "backup", [named("backup/c", 3, rounds=1)], ORDER)
    assert names(path) == ["hits/a", "hits/b", "backup/c", "cold/a"]
    text = path.read_text()
    assert text.count("- backup: measured anew") == 1
    assert "preliminary" in text
    update_results(path, "hits", [named("hits/z", 1)], ORDER)
    update_results(path, "cold", [named("cold/z", 1)], ORDER)
    assert names(path) == ["hits/z", "backup/c", "cold/z"]
