"""The host's metrics in Prometheus' text format: the pseudo-disks' counters, by mount, and the recall stores' room.

Nothing is kept here: each scrape asks the driver, and mounts that are gone are no longer listed.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from livemount.driver.api import Latency, PseudoDiskState, RecallStats

__all__ = ["CONTENT_TYPE", "render"]

COUNTERS = {
    "recalled_bytes": "Bytes recalled from the source, in the background or not",
    "prefetched_bytes": "Bytes recalled in the background: read-ahead and boot profile",
    "read_bytes": "Bytes the guest's host asked to read",
    "written_bytes": "Bytes the guest's host asked to write",
    "read_errors": "Reads that failed",
    "write_errors": "Writes that failed",
    "worker_restarts": "Workers that died and were replaced",
}
GAUGES = {
    "size": "Bytes of the disk",
    "private_bytes": "Bytes in the private store",
    "recall_store_bytes": "Bytes of the source in the recall store, which mounts of one copy share",
}
READS = {"zero": "zero_hits", "private": "private_hits", "recall": "recall_hits", "source": "misses"}
"""Value of the label `store`: where the slowest part of a read came from."""
LATENCIES = {"read_latency": "Time to answer a read", "write_latency": "Time to answer a write or zeroing"}


class _Host(Collector):
    def __init__(self, states: Iterable[PseudoDiskState], recall: RecallStats) -> None:
        self._states = list(states)
        self._recall = recall

    @override
    def collect(self) -> Iterable[Metric]:
        """One family a counter; one sample a mount in each, except for what is the host's."""
        yield GaugeMetricFamily(
            "livemount_recall_quota_bytes", "Room of all recall stores", value=self._recall.quota_bytes
        )
        yield GaugeMetricFamily(
            "livemount_recall_used_bytes", "What all recall stores take", value=self._recall.used_bytes
        )
        yield CounterMetricFamily(
            "livemount_recall_evictions", "Unused recall stores deleted for want of room", value=self._recall.evictions
        )
        yield CounterMetricFamily(
            "livemount_recall_not_kept_chunks",
            "Chunks recalled and not kept for want of room",
            value=self._recall.not_kept_chunks,
        )
        info = InfoMetricFamily(
            "livemount_disk", "A pseudo-disk and the machine its boot profile is for", labels=["mount"]
        )
        reads = CounterMetricFamily(
            "livemount_disk_reads", "Reads by where they were answered from", labels=["mount", "store"]
        )
        for state in self._states:
            info.add_metric([state.spec.id], {"machine": state.spec.profile or ""})
            for store, field in READS.items():
                reads.add_metric([state.spec.id, store], getattr(state.stats, field))
        yield info
        yield reads
        for field, text in COUNTERS.items():
            counter = CounterMetricFamily(f"livemount_disk_{field}", text, labels=["mount"])
            for state in self._states:
                counter.add_metric([state.spec.id], getattr(state.stats, field))
            yield counter
        for field, text in GAUGES.items():
            gauge = GaugeMetricFamily(f"livemount_disk_{field}", text, labels=["mount"])
            for state in self._states:
                gauge.add_metric([state.spec.id], getattr(state.stats, field))
            yield gauge
        for field, text in LATENCIES.items():
            histogram = HistogramMetricFamily(f"livemount_disk_{field}_seconds", text, labels=["mount"])
            for state in self._states:
                latency: Latency = getattr(state.stats, field)
                histogram.add_metric([state.spec.id], _cumulative(latency), sum_value=latency.seconds)
            yield histogram


def _cumulative(latency: Latency) -> list[tuple[str, float]]:
    """The buckets as Prometheus has them: upper bound in seconds, count of all up to it."""
    buckets, total = [], 0
    for number, count in enumerate(latency.buckets):
        total += count
        buckets.append((str(2**number / 1e6), float(total)))
    # The last bucket of a disk has no upper bound.
    return [*buckets[:-1], ("+Inf", float(total))]


def render(states: Iterable[PseudoDiskState], recall: RecallStats) -> bytes:
    """The answer to a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Host(states, recall))
    return generate_latest(registry)
