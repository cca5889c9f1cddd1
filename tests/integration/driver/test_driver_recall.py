"""Boot profiles, patience with the source, and the counters, through a real FUSE mount."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient, Response

from livemount.boot.nginx import NginxBoot
from livemount.driver.layout import DiskFiles
from livemount.guest.prepare import prepare
from livemount.guest.tools import GuestTools
from livemount.host.mounts import Mounts
from livemount.host.records import Records
from livemount.host.service import create_app
from livemount.target.tgt import TgtTarget
from tests.integration.driver.conftest import MIB, Host, make_source, wait_for

pytestmark = pytest.mark.integration

CHUNK = 65536
READ_FIRST = [33, 5, 17, 7, 41]
"""MiB, none of them holes."""


def read_some(path: Path) -> None:
    """What a boot might read first."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with os.fdopen(os.dup(file), "rb", buffering=0) as raw:
            for at in READ_FIRST:
                raw.seek(at * MIB)
                assert len(raw.read(CHUNK)) == CHUNK
    finally:
        os.close(file)


@pytest.mark.parametrize("ending", ["detach", "destroy", "kill"])
def test_a_later_copy_is_prefetched_in_the_order_of_the_first(host: Host, tmp_path: Path, ending: str) -> None:
    image = tmp_path / "image"
    make_source(image)
    first = host.client.attach(host.spec("m", image, profile="web01"))
    read_some(first.path)
    stats = host.client.state("m").stats
    assert (stats.misses, stats.recalled_bytes, stats.prefetched_bytes) == (5, 5 * CHUNK, 0)
    profile = host.paths.recall.parent / "profiles" / "web01.profile"
    if ending == "kill":
        # A killed worker loses at most what came after the last time it saved.
        host.kill_worker("m")
        wait_for(lambda: host.client.state("m").stats.worker_restarts == 1)
        read_some(first.path)
        host.client.detach("m")
    elif ending == "detach":
        host.client.detach("m")
    else:
        host.client.destroy("m")
    assert profile.exists()
    later = tmp_path / "later"
    shutil.copyfile(image, later)
    second = host.client.attach(host.spec("n", later, profile="web01"))
    wait_for(lambda: host.client.state("n").stats.prefetched_bytes == 5 * CHUNK)
    read_some(second.path)
    stats = host.client.state("n").stats
    assert (stats.misses, stats.recall_hits, stats.recalled_bytes) == (0, 5, 5 * CHUNK)
    # Another machine's mount gets nothing of it.
    shutil.copyfile(image, tmp_path / "other")
    host.client.attach(host.spec("o", tmp_path / "other", profile="web02"))
    assert host.client.state("o").stats.recalled_bytes == 0


def test_damaged_profile_does_not_keep_a_disk_down(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 8 * MIB)
    folder = host.paths.recall.parent / "profiles"
    folder.mkdir(parents=True)
    (folder / "web01.profile").write_bytes(random.Random(1).randbytes(1000))
    spec = host.spec("m", tmp_path / "image", profile="web01")
    assert host.client.attach(spec).path.read_bytes() == (tmp_path / "image").read_bytes()
    assert "it is damaged" in DiskFiles(spec.directory).log.read_text()


def test_io_is_held_while_the_source_is_away(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    model = make_source(image, 8 * MIB)
    path = host.client.attach(host.spec("m", image, hold_seconds=60)).path
    # A worker that starts while the source is away finds it again only when it needs it.
    image.rename(tmp_path / "away")
    host.kill_worker("m")
    found: list[bytes] = []
    with path.open("r+b", buffering=0) as file:

        def read() -> None:
            found.append(os.pread(file.fileno(), 4096, 3 * MIB))

        reader = threading.Thread(target=read)
        reader.start()
        log = DiskFiles(host.paths.mounts / "m").log
        wait_for(lambda: "recall of" in log.read_text())
        # Hits, holes and writes go on meanwhile.
        os.pwrite(file.fileno(), b"w" * 4096, 5 * MIB)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 4096, 6 * MIB) == bytes(4096)
        assert reader.is_alive()
        (tmp_path / "away").rename(image)
        reader.join(60)
        assert found == [model[3 * MIB : 3 * MIB + 4096]]
    assert host.client.state("m").stats.read_errors == 0


def test_an_end_does_not_wait_for_a_source_that_is_away(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_source(image, 8 * MIB)
    path = host.client.attach(host.spec("m", image, hold_seconds=3600)).path
    image.rename(tmp_path / "away")
    host.kill_worker("m")
    failures: list[OSError] = []

    def read() -> None:
        try:
            with path.open("rb", buffering=0) as file:
                os.pread(file.fileno(), 4096, 3 * MIB)
        except OSError as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    log = DiskFiles(host.paths.mounts / "m").log
    wait_for(lambda: "recall of" in log.read_text())
    host.client.destroy("m")
    reader.join(60)
    assert len(failures) == 1
    assert (host.mounts(), host.processes()) == ([], [])


def test_counters_say_where_reads_were_answered(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 16 * MIB)
    path = host.client.attach(host.spec("m", tmp_path / "image")).path
    file = os.open(path, os.O_RDWR)
    try:
        os.pwrite(file, b"x" * 8192, MIB)
        os.fsync(file)
        for offset in (MIB, 2 * MIB, 3 * MIB, 3 * MIB, 5 * MIB):
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            assert len(os.pread(file, 4096, offset)) == 4096
    finally:
        os.close(file)
    stats = host.client.state("m").stats
    assert (stats.private_hits, stats.zero_hits, stats.misses, stats.recall_hits) == (1, 1, 2, 1)
    assert stats.reads == sum(stats.read_latency.buckets) == 5
    assert stats.writes == sum(stats.write_latency.buckets)
    assert (stats.read_bytes, stats.written_bytes) == (5 * 4096, 8192)
    assert 0 < stats.read_latency.quantile(0.5) <= stats.read_latency.quantile(1) < 60
    assert stats.read_latency.seconds > 0


def test_the_hosts_metrics_need_its_token(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 4 * MIB)
    host.client.attach(host.spec("m", tmp_path / "image", profile="web01")).path.read_bytes()
    mounts = Mounts(
        address="127.0.0.1",
        records=Records(host.paths.mounts, host.paths.recall),
        driver=host.client,
        target=TgtTarget(host.paths.target_socket),
        boot=NginxBoot(host.paths),
        prepare=partial(prepare, tools=GuestTools(tmp_path)),
    )

    async def scrape(headers: dict[str, str]) -> Response:
        transport = ASGITransport(create_app(mounts, "secret"))
        async with AsyncClient(transport=transport, base_url="http://host") as client:
            return await client.get("/metrics", headers=headers)

    assert asyncio.run(scrape({})).status_code == 401
    answer = asyncio.run(scrape({"Authorization": "Bearer secret"}))
    assert answer.headers["content-type"].startswith("text/plain; version=")
    (recalled,) = [line for line in answer.text.splitlines() if line.startswith("livemount_disk_recalled_bytes_total")]
    assert float(recalled.removeprefix('livemount_disk_recalled_bytes_total{mount="m"} ')) == 2 * MIB
    assert "livemount_recall_not_kept_chunks_total 0.0" in answer.text
    assert 'livemount_disk_info{machine="web01",mount="m"} 1.0' in answer.text
