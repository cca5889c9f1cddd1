"""The metrics of a host, as Prometheus' own parser reads them."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from livemount.driver.api import Latency, PseudoDiskSpec, PseudoDiskState, PseudoDiskStats, RecallStats
from livemount.host.metrics import render


def state(mount: str, profile: str | None = None) -> PseudoDiskState:
    """A disk with counters that are all different."""
    numbers = {name: 100 + at for at, name in enumerate(PseudoDiskStats.model_fields) if "latency" not in name}
    latency = Latency(seconds=1.5, buckets=(1, 2, 3))
    return PseudoDiskState(
        spec=PseudoDiskSpec(
            id=mount, source="file:///a", directory=Path("/d"), recall_directory=Path("/r"), profile=profile
        ),
        path=Path("/d/disk"),
        stats=PseudoDiskStats(**numbers, read_latency=latency, write_latency=latency),
    )


RECALL = RecallStats(quota_bytes=1000, used_bytes=900, evictions=3, not_kept_chunks=77)


def samples(*states: PseudoDiskState) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All samples of a scrape."""
    families = text_string_to_metric_families(render(states, RECALL).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_counter_has_its_sample() -> None:
    one = state("m1", "web01")
    found = samples(one, state("m2"))
    mount = ("mount", "m1")
    values = one.stats.model_dump(exclude={"read_latency", "write_latency", "reads", "writes"})
    assert set(values.values()) <= set(found.values())
    assert found["livemount_disk_recalled_bytes_total", (mount,)] == one.stats.recalled_bytes
    assert found["livemount_disk_private_bytes", (mount,)] == one.stats.private_bytes
    assert found["livemount_disk_reads_total", (mount, ("store", "source"))] == one.stats.misses
    assert found["livemount_disk_info", (("machine", "web01"), mount)] == 1
    assert found["livemount_disk_info", (("machine", ""), ("mount", "m2"))] == 1


def test_latencies_are_cumulative_in_seconds() -> None:
    found = samples(state("m1"))
    name, mount = "livemount_disk_read_latency_seconds", ("mount", "m1")
    buckets = {labels[0][1]: value for (each, labels), value in found.items() if each == f"{name}_bucket"}
    assert buckets == {"1e-06": 1, "2e-06": 3, "+Inf": 6}
    assert (found[f"{name}_count", (mount,)], found[f"{name}_sum", (mount,)]) == (6, 1.5)


def test_without_mounts_there_is_what_the_host_has() -> None:
    assert samples() == {
        ("livemount_recall_quota_bytes", ()): 1000,
        ("livemount_recall_used_bytes", ()): 900,
        ("livemount_recall_evictions_total", ()): 3,
        ("livemount_recall_not_kept_chunks_total", ()): 77,
    }


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "monitoring.md").read_text()
    documented = set(re.findall(r"^\| `(livemount_(?:disk|recall)_\w+)`", page, re.MULTILINE))
    parts = re.compile("_(bucket|count|sum)$")
    assert {parts.sub("", name) for name, _ in samples(state("m1"))} == documented
