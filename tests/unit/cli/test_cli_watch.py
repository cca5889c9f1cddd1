"""How a look at the mounts is shown."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from livemount.cli.output import count_text, latency_text
from livemount.cli.watch import as_json, lines, table
from livemount.core.machine import Copy, Firmware, MachineDescription
from livemount.driver.api import PseudoDiskStats
from livemount.host.api import PseudoDisk, PseudoDiskRequest
from livemount.manager.looks import Look, MountLook, Percentiles, Rates
from livemount.workflow.states import MountOrder, MountRecord, MountState, Transition


def a_mount(name: str, *, disk: bool, state: MountState = MountState.RUNNING) -> MountLook:
    now = datetime.now(UTC)
    copy = Copy(
        id="ab" * 32, name="web01", time=now, size=1 << 30, stored=1, description=MachineDescription(), source="file:/x"
    )  # fmt: skip
    order = MountOrder(mount=name, copy=copy, expires=now + timedelta(minutes=65, seconds=30))
    record = MountRecord(order=order, history=[Transition(state=state, time=now, reason="")])
    if not disk:
        return MountLook(record=record, disk=None, rates=None)
    stats = PseudoDiskStats(
        size=1 << 30, private_bytes=3 << 20, recalled_bytes=100 << 20, recall_store_bytes=0, reads=1, writes=1,
        read_errors=2, write_errors=1, worker_restarts=7, zero_hits=1, private_hits=22, recall_hits=3333,
        misses=4444444,
    )  # fmt: skip
    latency = Percentiles(p50=512e-6, p99=8.192e-3)
    rates = Rates(
        seconds=2, recalled_bytes_per_second=5 << 20, reads_per_second=0.5, writes_per_second=1500,
        read_latency=latency, write_latency=Percentiles(p50=0, p99=0),
    )  # fmt: skip
    on_host = PseudoDisk(
        mount=name, request=PseudoDiskRequest(source="file:/x", address="10.0.0.1", firmware=Firmware.BIOS),
        portal="", target_iqn="", initiator_iqn="", size=1 << 30, stats=stats, report=None, sessions=[],
        healthy=False, problems=["its target is missing"],
    )  # fmt: skip
    return MountLook(record=record, disk=on_host, rates=rates)


def shown(look: Look, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table(look))
    return console.export_text()


def test_the_table_has_every_counter() -> None:
    mounts = [a_mount("web01-1", disk=True), a_mount("web02", disk=False, state=MountState.PREPARING)]
    text = shown(Look(time=datetime.now(UTC), mounts=mounts, problem=None), 100)
    for part in (
        "web01-1", "running 1h 05m", "1, 22,", "3.3k, 4.4M", "100.0 MiB 9.8%", "5.0 MiB/s", "3.0 MiB",
        "0.5/s", "512 µs, 8.2 ms", "1.5k/s", "-, -", "web01-1: its target is missing", "preparing 1h 05m", "2 mounts",
    ):  # fmt: skip
        assert part in text, text
    assert max(map(len, text.splitlines())) <= 100


def test_a_narrow_terminal_loses_nothing() -> None:
    look = Look(time=datetime.now(UTC), mounts=[a_mount("web01-1", disk=True)], problem=None)
    narrow = shown(look, 60)
    assert "…" not in narrow
    for part in ("web01-1", "3.3k", "4.4M", "9.8%", "µs", "7"):
        assert part in narrow, narrow


def test_a_host_that_does_not_answer_is_told_of() -> None:
    look = Look(time=datetime.now(UTC), mounts=[a_mount("web01", disk=False)], problem="the host [of m] is away")
    assert "the host [of m] is away" in shown(look, 100)
    assert lines(look)[1].endswith("the host [of m] is away")
    assert as_json(look)["problem"] == "the host [of m] is away"


def test_a_line_has_every_counter() -> None:
    (line,) = lines(Look(time=datetime.now(UTC), mounts=[a_mount("m", disk=True)], problem=None))
    assert line[9:] == (
        "m running; left 1h 05m; hits zero 1 private 22 recall 3333 source 4444444; recalled 100.0 MiB 9.8%; "
        "private 3.0 MiB; recall 5.0 MiB/s; reads 0.5/s p50, p99 512 µs, 8.2 ms; writes 1500.0/s p50, p99 -, -; "
        "errors 3; restarts 7; its target is missing"
    )
    assert lines(Look(time=datetime.now(UTC), mounts=[], problem=None))[0].endswith("no mounts")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (0.25, "0.2"), (9.94, "9.9"), (12.3, "12"), (999, "999"), (999.6, "1.0k"), (3e9, "3.0G")],
)
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "-"), (1e-6, "1 µs"), (1.024e-3, "1.0 ms"), (1.048576, "1.0 s")])
def test_latencies(seconds: float, text: str) -> None:
    assert latency_text(seconds) == text
