"""Many disks of one host at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.driver.conftest import MIB, Host, wait_for

pytestmark = pytest.mark.integration

DISKS = 20
"""Of one copy, and as many of different ones."""
IDLE_THREADS = 12
"""More than an idle worker has: its own, those of FUSE, the recall threads that stay."""


def test_twenty_disks_of_one_copy_and_twenty_of_others_at_once(host: Host, tmp_path: Path) -> None:
    images = {f"other{number}": tmp_path / f"other{number}.raw" for number in range(DISKS)}
    for path in (*images.values(), tmp_path / "one.raw"):
        path.write_bytes(random.Random(path.name).randbytes(2 * MIB) + bytes(MIB))
    images |= {f"same{number}": tmp_path / "one.raw" for number in range(DISKS)}
    with ThreadPoolExecutor(len(images)) as pool:
        states = dict(
            zip(images, pool.map(lambda id: host.client.attach(host.spec(id, images[id])), images), strict=True)
        )
        read = dict(zip(images, pool.map(lambda id: states[id].path.read_bytes(), images), strict=True))
        assert [id for id in images if read[id] != images[id].read_bytes()] == []
        stats = {state.spec.id: state.stats for state in host.client.states()}
        assert all(each.read_errors == 0 and each.worker_restarts == 0 for each in stats.values())
        assert {each.recall_store_bytes for each in stats.values()} == {2 * MIB}
        assert len([path for path in host.paths.recall.iterdir() if path.is_dir()]) == DISKS + 1

        workers = [host.worker(id) for id in images]
        wait_for(lambda: all(len(list(Path(f"/proc/{pid}/task").iterdir())) <= IDLE_THREADS for pid in workers))
        list(pool.map(host.client.destroy, images))
    assert (host.client.states(), host.mounts(), host.processes()) == ([], [], [])
    assert list(host.paths.mounts.iterdir()) == []
    assert sorted(path.name for path in host.paths.recall.iterdir()) == [".ledger", ".lock"]
