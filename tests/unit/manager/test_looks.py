"""What happened between two looks at a disk."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.driver.api import Latency, PseudoDiskStats
from livemount.driver.layout import LATENCY_BUCKETS
from livemount.manager.looks import Percentiles, rates

COUNTS = st.lists(st.integers(0, 1000), min_size=LATENCY_BUCKETS, max_size=LATENCY_BUCKETS).map(tuple)


def stats(reads: int = 0, recalled: int = 0, buckets: tuple[int, ...] = ()) -> PseudoDiskStats:
    return PseudoDiskStats(
        size=1 << 30, private_bytes=0, recalled_bytes=recalled, recall_store_bytes=0, reads=reads, writes=2 * reads,
        read_errors=0, worker_restarts=0, read_latency=Latency(buckets=buckets), write_latency=Latency(buckets=buckets),
    )  # fmt: skip


def test_rates_are_those_between_the_looks() -> None:
    found = rates(stats(100, 5000, (100, 0, 0)), stats(110, 9000, (100, 9, 1)), 2)
    assert found is not None
    assert (found.reads_per_second, found.writes_per_second, found.recalled_bytes_per_second) == (5, 10, 2000)
    # The 100 of before the first look are not in it.
    assert found.read_latency == found.write_latency == Percentiles(p50=2e-6, p99=4e-6)


def test_a_disk_at_rest_has_no_latency() -> None:
    found = rates(stats(100, 5000, (100,)), stats(100, 5000, (100,)), 2)
    assert found is not None
    assert (found.reads_per_second, found.read_latency) == (0, Percentiles(p50=0, p99=0))


def test_counters_that_went_back_are_another_disks() -> None:
    assert rates(stats(100, 0, (100,)), stats(10, 0, (10,)), 2) is None
    assert rates(stats(1, 0, (0, 1)), stats(2, 0, (2, 0)), 2) is None
    assert rates(stats(), stats(), 0) is None


def test_the_first_buckets_may_come_between_two_looks() -> None:
    found = rates(stats(), stats(1, 0, (0, 1)), 1)
    assert found is not None
    assert found.read_latency.p50 == 2e-6


@given(COUNTS, COUNTS)
def test_percentiles_are_those_of_the_difference(before: tuple[int, ...], more: tuple[int, ...]) -> None:
    after = tuple(one + two for one, two in zip(before, more, strict=True))
    found = rates(stats(0, 0, before), stats(1, 0, after), 1)
    assert found is not None
    assert found.read_latency.p50 == pytest.approx(Latency(buckets=more).quantile(0.5))
    assert found.read_latency.p99 == pytest.approx(Latency(buckets=more).quantile(0.99))
