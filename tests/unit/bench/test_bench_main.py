"""A bench that fails does not keep the others from running."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.harness import Figure, figure
from bench.rig import Options
from livemount.core.errors import UnavailableError


def fake(name: str, _: Options) -> Iterator[Figure]:
    if name == "cold":
        raise UnavailableError("needs borg")
    if name == "memory":
        raise ZeroDivisionError("a bug")
    yield figure(f"{name}/x", [1.0], [1.0], unit="s", peer_name="p")


def test_all_goes_on_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "RESULTS.md"
    monkeypatch.setattr(command, "figures", fake)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench", "all", "--skip", "boot", "--results", str(page)])
    assert command.main() == 1
    text = page.read_text()
    for line in ("cold: needs borg", "memory: ZeroDivisionError: a bug", "boot: skipped", "| hits/x |", "| scale/x |"):
        assert line in text
    assert "bench cold: needs borg" in capsys.readouterr().err


def test_one_bench_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "RESULTS.md"
    monkeypatch.setattr(command, "figures", fake)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["bench", "hits", "scale", "--json", "--results", str(page)])
    assert command.main() == 0
    assert not page.exists()
