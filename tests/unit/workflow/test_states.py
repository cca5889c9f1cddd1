"""The states of a mount: only the listed ways between them exist, and each change is kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from livemount.core.machine import Copy, MachineDescription
from livemount.workflow.mount import dump
from livemount.workflow.states import TRANSITIONS, MountOrder, MountRecord, MountState, Transition

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def a_record(state: MountState = MountState.REQUESTED) -> MountRecord:
    copy = Copy(
        id="ab" * 32,
        name="web01",
        time=NOW,
        size=2**30,
        stored=2**20,
        description=MachineDescription(),
        source="file:///x",
    )
    order = MountOrder(mount="web01-1", copy=copy, expires=NOW + timedelta(hours=1))
    return MountRecord(order=order, history=[Transition(state=state, time=NOW, reason="test")])


@given(st.lists(st.sampled_from(MountState), max_size=12))
def test_only_listed_transitions(path: list[MountState]) -> None:
    record = a_record()
    for state in path:
        if state in TRANSITIONS[record.state]:
            seen = len(record.history)
            record = record.moved(state, NOW, "because")
            assert record.state is state
            assert len(record.history) == seen + 1
        else:
            with pytest.raises(ValueError, match="cannot go"):
                record.moved(state, NOW, "because")


@pytest.mark.parametrize("state", list(MountState))
def test_every_state_leads_to_an_end(state: MountState) -> None:
    reached = {state}
    while more := {t for s in reached for t in TRANSITIONS[s]} - reached:
        reached |= more
    assert any(s.final for s in reached)


def test_an_order_of_an_earlier_version_holds_io_as_long_as_it_did() -> None:
    data = dump(a_record())
    assert data["order"].pop("hold_seconds") == 20
    assert MountRecord.model_validate(data).order.hold_seconds == 20


@pytest.mark.parametrize("seconds", [-1, 3601, float("nan")])
def test_io_is_held_for_an_hour_at_most(seconds: float) -> None:
    order = a_record().order.model_dump(by_alias=True)
    with pytest.raises(ValidationError, match="hold_seconds"):
        MountOrder.model_validate({**order, "hold_seconds": seconds})


def test_a_record_survives_the_database() -> None:
    record = a_record().moved(MountState.PREPARING, NOW, "x", outputs={"address": "10.77.0.10"})
    data = dump(record)
    assert data["order"]["copy"]["name"] == "web01"
    assert MountRecord.model_validate(data) == record
