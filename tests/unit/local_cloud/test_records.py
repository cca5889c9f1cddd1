"""Records and locks of the local cloud."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from livemount.core.errors import CorruptError
from livemount.local_cloud.api import NetworkSpec
from livemount.local_cloud.locks import locked, step
from livemount.local_cloud.records import Records


def test_written_records_are_read(tmp_path: Path) -> None:
    records = Records(tmp_path / "networks", NetworkSpec)
    assert records.read("net") is None
    assert records.names() == []
    spec = NetworkSpec(name="net", namespace="lm-net")
    records.write("net", spec)
    changed = spec.model_copy(update={"cidr": "10.78.0.0/24"})
    records.write("net", changed)
    assert records.all() == {"net": changed}
    assert [path.name for path in (tmp_path / "networks").iterdir()] == ["net.json"]
    records.remove("net")
    records.remove("net")
    assert records.all() == {}


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "net.json").write_text('{"name": "net"')
    with pytest.raises(CorruptError, match=r"net\.json cannot be read"):
        Records(tmp_path, NetworkSpec).read("net")


def test_one_holds_a_lock_and_no_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "cloud.lock"
    inside = 0

    def hold(_: int) -> int:
        nonlocal inside
        with locked(path):
            inside += 1
            os.sched_yield()
            found = inside
            inside -= 1
        return found

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(hold, range(400))) == {1}
    assert list(tmp_path.iterdir()) == []


def test_a_step_keeps_the_lock_of_a_dead_caller(tmp_path: Path) -> None:
    path, done = tmp_path / "cloud.lock", tmp_path / "done"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.set_inheritable(writer, True)
        with locked(path):
            # The program tells that it runs, and the caller dies before it ends.
            step("sh", "-c", f"kill -9 $PPID; sleep 0.5; touch {done}")
        os._exit(1)
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)
    with locked(path):
        assert done.exists()
