"""`setup/run` as a user runs it: quick when nothing is missing, and clear about what it cannot do."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]


def setup(*steps: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run(
        [ROOT / "setup" / "run", *steps],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_a_second_run_finds_nothing_missing(tmp_path: Path) -> None:
    setup("packages", LIVEMOUNT_CACHE=str(tmp_path))
    again = setup("packages", LIVEMOUNT_CACHE=str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert "==> packages\n    all installed\n" in again.stdout
    assert "nothing was missing" in again.stdout
    assert not Path("/usr/sbin/policy-rc.d").exists()


def test_an_unknown_step_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    refused = setup("packages", "bogus", LIVEMOUNT_CACHE=str(tmp_path / "cache"))
    assert refused.returncode == 1
    assert "there is no step 'bogus'" in refused.stderr
    assert not (tmp_path / "cache").exists()


def test_a_machine_without_apt_is_told_the_way_out(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "mkdir"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    refused = setup("packages", PATH=str(tmp_path), HOME=str(tmp_path), LIVEMOUNT_CACHE=str(tmp_path / "cache"))
    assert refused.returncode == 1
    assert "this is no Debian machine" in refused.stderr
    assert "setup/apt-packages.txt" in refused.stderr
