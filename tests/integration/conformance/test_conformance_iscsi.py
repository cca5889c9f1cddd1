"""libiscsi's conformance suite: whatever tgt passes on a plain file, it passes on a pseudo-disk.

One process a suite, each with a time limit of its own: all suites in one process did not end within 500 s, with tgt on
a plain file alone. See docs/conformance.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import pytest

from livemount.core.run import run
from livemount.core.secrets import new_secret
from livemount.target.api import Chap, TargetSpec
from tests.integration.driver.conftest import MIB, Host, make_source
from tests.integration.target.conftest import GUEST, Bench

pytestmark = pytest.mark.integration

SUITE_LIMIT = 30
"""Seconds; the longest takes 6."""
TEST = re.compile(r"^  Test: (\S+) \.\.\.(.*?)(?=^  Test: |^Suite: |^Run Summary|\Z)", re.MULTILINE | re.DOTALL)
NOT_PASSED_BY_TGT = {
    "GetLBAStatus.BeyondEol",
    "GetLBAStatus.UnmapSingle",
    "PrinServiceactionRange.Range",
    "ProutReserve.OwnershipEA",
    "ProutReserve.OwnershipWE",
    "ProutReserve.OwnershipEARO",
    "ProutReserve.OwnershipWERO",
    "Reserve6.2Initiators",
    "Unmap.ZeroBlocks",
    "iSCSIdatasn.iSCSIDataSnInvalid",
}
"""Explained in docs/conformance.md."""


class Result(StrEnum):
    """What came of a test. A test that found its command missing is skipped."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    HUNG = "hung"


def suites() -> dict[str, list[str]]:
    """The suites and their tests."""
    found: dict[str, list[str]] = {}
    for line in run("iscsi-test-cu", "--list").stdout.split():
        family, _, rest = line.partition(".")
        suite, _, test = rest.partition(".")
        if family == "ALL" and test:
            found.setdefault(suite, []).append(test)
    return found


def results(bench: Bench, spec: TargetSpec) -> dict[str, Result]:
    """Run every suite."""
    found: dict[str, Result] = {}
    for suite, tests in suites().items():
        both = ["--initiator-name", "INITIATOR", "--initiator-name-2", "INITIATOR"]  # the target knows one name
        words = ["--dataloss", "--verbose", *both, "--test", f"ALL.{suite}", bench.url(spec)]
        limit = ["timeout", "--signal", "KILL", str(SUITE_LIMIT)]
        done = bench.client(*limit, "iscsi-test-cu", *words, spec=spec, timeout=2 * SUITE_LIMIT)
        seen = dict(TEST.findall(done.stdout))
        for test in tests:
            found[f"{suite}.{test}"] = classify(seen.get(test))
    return found


def classify(output: str | None) -> Result:
    """What the output of one test says. What a test's cleaning up prints after the verdict does not count."""
    verdict = re.search(r"^\s*(passed|FAILED)\b", output or "", re.MULTILINE)
    if output is None or verdict is None:
        return Result.HUNG
    if verdict[1] == "FAILED":
        return Result.FAILED
    return Result.SKIPPED if "[SKIPPED]" in output else Result.PASSED


def names(results: dict[str, Result], choose: Callable[[Result], bool]) -> set[str]:
    """The tests of certain results."""
    return {name for name, result in results.items() if choose(result)}


def test_pseudo_disk_passes_what_a_plain_file_passes(bench: Bench, host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 48 * MIB)
    disk = host.client.attach(host.spec("ours", tmp_path / "image")).path
    specs = {
        "plain": bench.spec("plain", size=48 * MIB),
        "ours": TargetSpec(
            mount="ours", backing_file=disk, initiator_address=GUEST, chap=Chap(user="ours", secret=new_secret())
        ),
    }
    found = {}
    for name, spec in specs.items():
        bench.target().create(spec)
        found[name] = results(bench, spec)
        bench.target().delete(spec.mount)
    plain = names(found["plain"], lambda result: result is Result.PASSED)
    ours = names(found["ours"], lambda result: result is Result.PASSED)
    for name in sorted(found["plain"]):
        print(name, found["plain"][name].value, found["ours"][name].value)
    assert plain - ours == set()
    assert len(plain) > 100
    broken = names(found["ours"], lambda result: result in (Result.FAILED, Result.HUNG))
    assert broken <= NOT_PASSED_BY_TGT
