"""A caller killed anywhere while it makes or removes things: the next call repairs or clears."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from livemount.local_cloud.accelerator import accelerator

if TYPE_CHECKING:
    from tests.integration.local_cloud.conftest import Site

pytestmark = pytest.mark.integration

_POINTS = {"subprocess.Popen", "os.rename", "os.remove", "os.mkdir", "socket.bind"}


def killed(work: Callable[[], None], *, point: int | None = None, after: float | None = None) -> bool:
    """Do `work` in a child that is killed before its n-th step, or after some seconds; `False` when it was done."""
    child = os.fork()
    if child == 0:
        count = 0

        def step(event: str, _: object) -> None:
            nonlocal count
            if event in _POINTS:
                if count == point:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(step)
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    if after is not None:
        threading.Event().wait(after)
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def check_whole(site: Site) -> None:
    """Everything is there, and nothing else."""
    assert site.cloud.read_network("net") is not None
    assert all(site.cloud.read_interface(name) for name in ("host", "a", "b"))
    assert site.cloud.read_machine("web01") is not None
    assert site.cloud.leftovers() == []


def test_killed_at_each_step_of_making_then_deleted(site: Site) -> None:
    accelerator()
    point = 0
    while killed(site.make, point=point):
        site.delete()
        assert site.cloud.remains() == [], f"killed before step {point}"
        point += 1
    assert point > 20
    check_whole(site)


def test_killed_at_each_step_of_making_then_made_again(site: Site) -> None:
    accelerator()
    point = 0
    while killed(site.make, point=point):
        site.make()
        check_whole(site)
        site.delete()
        point += 1
    assert point > 20


def test_killed_at_each_step_of_deleting_then_deleted_again(site: Site) -> None:
    accelerator()
    site.make()
    point = 0
    while killed(site.delete, point=point):
        site.delete()
        assert site.cloud.remains() == [], f"killed before step {point}"
        site.make()
        point += 1
    assert point > 10
    assert site.cloud.remains() == []


def test_killed_at_any_time(site: Site) -> None:
    accelerator()
    chance = random.Random(1)
    for _ in range(15):
        killed(site.make, after=chance.uniform(0, 0.35))
        site.make()
        check_whole(site)
        killed(site.delete, after=chance.uniform(0, 0.3))
        site.delete()
        assert site.cloud.remains() == []
