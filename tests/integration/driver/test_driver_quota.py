"""The quota of the recall stores through real mounts: what is kept, what goes, and that nobody's I/O notices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from livemount.driver.api import PseudoDiskStats
from tests.integration.driver.conftest import MIB, Host, make_source, wait_for

pytestmark = pytest.mark.integration


def restart(host: Host, *options: str) -> None:
    """Kill the service and start it with other options."""
    host.kill()
    host.options = options
    host.start()


def read_all(path: Path) -> bytes:
    """The disk's bytes, not those of the page cache."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        with os.fdopen(os.dup(file), "rb") as reader:
            return reader.read()
    finally:
        os.close(file)


def stores(host: Host) -> list[Path]:
    return [path for path in host.paths.recall.iterdir() if path.is_dir()]


def stats(host: Host, mount: str) -> PseudoDiskStats:
    return host.client.state(mount).stats


def test_a_mount_at_the_quota_reads_right_bytes_and_keeps_again_when_there_is_room(host: Host, tmp_path: Path) -> None:
    quota = 10 * MIB
    restart(host, "--recall-quota", str(quota))
    small, large = tmp_path / "small", tmp_path / "large"
    small_bytes, large_bytes = make_source(small, 8 * MIB), make_source(large, 17 * MIB)
    assert read_all(host.client.attach(host.spec("small", small)).path) == small_bytes
    path = host.client.attach(host.spec("large", large)).path
    assert read_all(path) == large_bytes
    assert read_all(path) == large_bytes
    assert stats(host, "small").recall_store_bytes == 4 * MIB
    assert 4 * MIB < stats(host, "large").recall_store_bytes <= 6 * MIB
    assert (stats(host, "small").read_errors, stats(host, "large").read_errors) == (0, 0)
    # What was being written when it was measured may come on top (see the ledger's contract).
    wait_for(lambda: 8 * MIB < host.client.recall_stats().used_bytes <= quota + MIB)
    recall = host.client.recall_stats()
    assert (recall.quota_bytes, recall.evictions) == (quota, 0)
    assert recall.not_kept_chunks > 0

    host.client.destroy("small")

    def keeps_again() -> bool:
        assert read_all(path) == large_bytes
        return stats(host, "large").recall_store_bytes == 8 * MIB

    wait_for(keeps_again)
    recalled = stats(host, "large").recalled_bytes
    assert read_all(path) == large_bytes
    assert stats(host, "large").recalled_bytes == recalled
    host.client.destroy("large")
    assert stores(host) == []


def test_a_kept_store_serves_the_next_mount_until_another_copy_needs_the_room(host: Host, tmp_path: Path) -> None:
    options = ("--recall-quota", "10MiB", "--keep-recall-stores")
    restart(host, *options)
    one, two = tmp_path / "one", tmp_path / "two"
    one_bytes, two_bytes = make_source(one, 8 * MIB), make_source(two, 17 * MIB)
    assert read_all(host.client.attach(host.spec("first", one)).path) == one_bytes
    assert stats(host, "first").recalled_bytes == 4 * MIB
    host.client.destroy("first")
    assert len(stores(host)) == 1
    restart(host, *options)
    assert read_all(host.client.attach(host.spec("second", one)).path) == one_bytes
    second = stats(host, "second")
    assert (second.recalled_bytes, second.misses, second.recall_store_bytes) == (0, 0, 4 * MIB)
    host.client.destroy("second")

    path = host.client.attach(host.spec("other", two)).path

    def all_of_it_is_kept() -> bool:
        assert read_all(path) == two_bytes
        return stats(host, "other").recall_store_bytes == 8 * MIB

    wait_for(all_of_it_is_kept)
    assert host.client.recall_stats().evictions == 1
    assert len(stores(host)) == 1
    host.client.destroy("other")
    assert len(stores(host)) == 1
    # Not to be kept any more.
    restart(host, "--recall-quota", "10MiB")
    assert stores(host) == []


def test_a_quota_that_is_none_is_a_wrong_option(host: Host) -> None:
    host.kill()
    host.options = ("--recall-quota", "much")
    with pytest.raises(AssertionError, match="'much' is not a quota"):
        host.start()
