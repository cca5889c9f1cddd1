"""The report in Prometheus' text format: ages of copies as times, so that the server tells the age at any moment."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from livemount.catalog.catalog import Outcome
from livemount.policies.report import Entry, Report, Run

LABELS = ["machine", "policy"]
ENTRY = {
    "livemount_backup_late": "Whether there is no copy for the last time that was due",
    "livemount_backup_failing": "Whether the last backup failed",
    "livemount_backup_running": "Whether a backup runs",
    "livemount_backup_last_success_timestamp_seconds": "When the last copy was made",
    "livemount_backup_last_failure_timestamp_seconds": "When the last backup that failed began",
    "livemount_backup_next_timestamp_seconds": "When the next backup is due",
    "livemount_copies": "Copies in the repository",
    "livemount_copies_held": "Copies that are mounted or held",
    "livemount_copies_added_bytes": "What they added to the repository",
    "livemount_copy_size_bytes": "Of the disks of the newest copy",
    "livemount_copy_stored_bytes": "In use on the disks of the newest copy",
}


class _Collector(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    @override
    def collect(self) -> Iterable[Metric]:
        """One sample an entry, without those that are not known."""
        report = self._report
        yield GaugeMetricFamily(
            "livemount_report_timestamp_seconds", "When this was found", value=report.time.timestamp()
        )
        yield GaugeMetricFamily(
            "livemount_repository_up", "Whether the repository could be read", value=report.problem is None
        )
        values = [(entry, _values(entry)) for entry in report.entries]
        for name, text in ENTRY.items():
            family = GaugeMetricFamily(name, text, labels=LABELS)
            for entry, known in values:
                if (value := known[name]) is not None:
                    family.add_metric([entry.machine, entry.policy or ""], value)
            yield family
        late = GaugeMetricFamily(
            "livemount_upkeep_late", "Whether a check or prune that was due was not done", labels=["policy", "purpose"]
        )
        for each in report.upkeep:
            late.add_metric([each.policy, each.purpose], each.late)
        yield late
        yield from _runs("check", report.last_check)
        yield from _runs("prune", report.last_prune)
        jobs = GaugeMetricFamily("livemount_jobs", "Jobs that the catalog knows", labels=["kind", "outcome"])
        for kind, counts in report.jobs.items():
            for outcome in ("running", *Outcome):
                jobs.add_metric([kind, outcome], counts.get(outcome, 0))
        yield jobs


def _values(entry: Entry) -> dict[str, float | None]:
    failure = entry.last_failure
    values = (
        entry.late,
        entry.failing,
        entry.running_since is not None,
        _seconds(entry.last_success),
        _seconds(failure.time if failure else None),
        _seconds(entry.next),
        entry.copies,
        entry.held,
        entry.added,
        entry.size,
        entry.stored,
    )
    return dict(zip(ENTRY, values, strict=True))


def _runs(name: str, run: Run | None) -> Iterable[Metric]:
    if run is not None:
        time, ok = run.time.timestamp(), run.outcome is Outcome.DONE
        yield GaugeMetricFamily(f"livemount_{name}_last_timestamp_seconds", f"When the last {name} began", value=time)
        yield GaugeMetricFamily(f"livemount_{name}_last_ok", f"Whether the last {name} found nothing wrong", value=ok)


def _seconds(time: datetime | None) -> float | None:
    return None if time is None else time.timestamp()


def metrics_text(report: Report) -> str:
    """The report for a scrape, or for a file that the node exporter reads."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(report))
    return generate_latest(registry).decode()
