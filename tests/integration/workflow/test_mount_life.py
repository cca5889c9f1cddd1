"""The life of mounts on a stand-in cloud: the manager's service killed at each step, queues, changes of the expiry."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from livemount.core.errors import ConflictError, UsageError
from livemount.manager.client import Manager
from livemount.manager.turns import Limits
from livemount.workflow.states import EndCause, MountRecord, MountState
from tests.support.stand_in_cloud import PATIENCE, PLACES, StandIn, an_order, stand_in

RECORDED = 22
"""Steps that the workflow of a whole life records, at least: three more when nobody tells it to end at once."""
MOMENTS = [*PLACES, *range(1, RECORDED + 1)]


@pytest.fixture(scope="module")
def service() -> Iterator[StandIn]:
    with stand_in() as running:
        yield running


@pytest.fixture
def manager(service: StandIn) -> Iterator[Manager]:
    with closing(service.manager()) as client:
        yield client


def live_and_end(manager: Manager, name: str) -> MountRecord:
    """Bring a mount up, then end it."""
    manager.request(an_order(name))
    manager.wait_until(name, lambda record: record.state is MountState.RUNNING, PATIENCE)
    manager.stop(name, "enough")
    return manager.wait_until(name, lambda _: False, PATIENCE)


LIFE = [
    MountState.REQUESTED,
    MountState.PREPARING,
    MountState.BOOTING,
    MountState.RUNNING,
    MountState.ENDING,
    MountState.ENDED,
]


def test_a_whole_life(manager: Manager, service: StandIn) -> None:
    record = live_and_end(manager, "whole")
    assert [step.state for step in record.history] == LIFE
    assert [step.time for step in record.history] == sorted(step.time for step in record.history)
    assert record.history[-2].reason == "enough"
    assert record.ended_by is EndCause.ASKED
    assert service.cloud.journal("whole") == ["made", "gone"]


def killed_name(moment: str | int) -> str:
    return f"killed-{moment}".replace(".", "-")


@pytest.fixture(scope="module")
def killed(service: StandIn) -> StandIn:
    """The service, asked for mounts, and killed at another moment of each."""
    with closing(service.manager()) as manager:
        for moment in MOMENTS:
            service.kill_at(killed_name(moment), moment)
            manager.request(an_order(killed_name(moment)))
    return service


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_each_step_a_mount_goes_on_once(killed: StandIn, manager: Manager, moment: str | int) -> None:
    name = killed_name(moment)
    manager.wait_until(name, lambda record: record.state is MountState.RUNNING, PATIENCE)
    manager.stop(name, "enough")
    record = manager.wait_until(name, lambda _: False, PATIENCE)
    # The last steps come after the record is final.
    killed.wait_for(lambda: killed.killed(name, moment), f"the kill at {moment}")
    assert [step.state for step in record.history] == LIFE
    journal = killed.cloud.journal(name)
    assert [line for line in journal if line in ("made", "gone")] == ["made", "gone"], journal
    assert not (killed.cloud.here / name).exists()


def test_killed_while_it_cannot_be_made_a_mount_is_cleaned_up(manager: Manager, service: StandIn) -> None:
    moments = ("destroy.begins", 6)
    for moment in moments:
        service.kill_at(f"broken-{str(moment)[:3]}", moment)
        manager.request(an_order(f"broken-{str(moment)[:3]}"))
    for moment in moments:
        name = f"broken-{str(moment)[:3]}"
        record = manager.wait_until(name, lambda _: False, PATIENCE)
        assert service.killed(name, moment)
        assert (record.state, record.left, record.ended_by) == (MountState.FAILED, False, EndCause.FAILED)
        assert "no such thing" in str(record.error)


def test_an_expiry_that_is_changed_counts(manager: Manager) -> None:
    manager.request(an_order("longer", ttl=timedelta(seconds=PATIENCE)))
    later = datetime.now(UTC) + timedelta(hours=2)
    manager.change("longer", later, "extended by a test")
    record = manager.wait_until("longer", lambda record: record.order.expires == later, PATIENCE)
    assert record.notes[-1].text.startswith("extended by a test: ends 20")
    with pytest.raises(UsageError, match="cannot end at"):
        manager.change("longer", datetime.now(UTC) + timedelta(days=31), "too long")
    with pytest.raises(UsageError, match="cannot end at"):
        manager.change("longer", datetime.now(UTC), "too late")
    manager.change("longer", datetime.now(UTC) + timedelta(seconds=0.5), "shortened")
    record = manager.wait_until("longer", lambda _: False, PATIENCE)
    assert (record.state, record.ended_by) == (MountState.ENDED, EndCause.EXPIRED)
    with pytest.raises(ConflictError, match="is ended: expired"):
        manager.change("longer", later, "again")


def test_of_two_that_ask_at_once_for_a_name_one_gets_it(manager: Manager, service: StandIn) -> None:
    other = service.manager()
    known = manager._workflows("twice.")
    # Both have looked, and found the name free.
    with pytest.MonkeyPatch.context() as patch, closing(other):
        for client in (manager, other):
            patch.setattr(client, "_workflows", lambda _: known)
        manager.request(an_order("twice"))
        with pytest.raises(ConflictError, match="a mount twice already"):
            other.request(an_order("twice"))
    manager.wait_until("twice", lambda record: record.state is MountState.RUNNING, PATIENCE)
    manager.stop("twice", "enough")
    manager.wait_until("twice", lambda _: False, PATIENCE)
    assert service.cloud.journal("twice") == ["made", "gone"]


def test_a_hundred_at_once_wait_for_their_turn_and_none_is_lost(manager: Manager, service: StandIn) -> None:
    limits = Limits(host=12, user=5)
    manager.limit(limits)
    assert manager.limits() == limits
    before = len(service.cloud.journal())
    names = {f"many-{number}": f"user{number % 4}" for number in range(100)}
    for name, owner in names.items():
        manager.request(an_order(name, owner=owner))
    # One that waits can be told to end, or to end at another time.
    last, late = "many-99", "many-98"
    waits = manager.record(last)
    assert waits.state is MountState.REQUESTED
    assert waits.reason.startswith("waits for its turn")
    place, _, of = waits.reason.split("place ")[1].split()[:3]
    assert int(place) == int(of) > 50
    manager.stop(last, "not needed any more")
    later = datetime.now(UTC) + timedelta(hours=3)
    manager.change(late, later, "extended by a test")
    killed = False
    told: set[str] = set()

    def all_over() -> bool:
        nonlocal killed
        going_on = [record for record in manager.records() if record.order.mount in names]
        for record in going_on:
            if record.state is MountState.RUNNING and record.order.mount not in told:
                told.add(record.order.mount)
                manager.stop(record.order.mount, "enough")
        if len(going_on) < 70 and not killed:
            killed = True
            os.kill(service.pid(), signal.SIGKILL)
        return not going_on

    service.wait_for(all_over, "all are over", 3 * PATIENCE, period=0.2)
    done = {record.order.mount: record for record in manager.records(ended=True) if record.order.mount in names}
    assert len(done) == len(names)
    assert killed
    assert {record.state for record in done.values()} == {MountState.ENDED}
    assert not any(service.cloud.here.iterdir())
    for line in (service.folder / "journal").read_text().splitlines()[before:]:
        what, name, *here = line.split()
        if what == "made":
            assert len(here) <= limits.host
            assert sum(names[each] == names[name] for each in here) <= limits.user, line
    made = [name for name in names if service.cloud.journal(name).count("made") == 1]
    assert sorted({*names} - {*made}) == [last]
    assert done[last].history[-2].reason == "not needed any more"
    assert done[late].order.expires == later
    assert manager.waiting() == []
    manager.limit(Limits())
