"""Pseudo-disks through a real FUSE mount: contents, lifecycle, errors."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.core.errors import ConflictError, CorruptError, NoSpaceError, NotFoundError, UnavailableError, UsageError
from livemount.core.run import run
from livemount.driver.client import DriverClient
from livemount.driver.mounting import MAX_DIRTY
from tests.integration.driver.conftest import MIB, Host, make_source, wait_for
from tests.support.suspend import suspend

pytestmark = pytest.mark.integration

PUNCH_HOLE_KEEP_SIZE = 0x03
ZERO_RANGE = 0x10
LIBC = ctypes.CDLL(None, use_errno=True)


def allocate(file: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2)."""
    call = LIBC.fallocate(file, mode, ctypes.c_int64(offset), ctypes.c_int64(length))
    if call != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize("direct", [False, True])
def test_random_operations_equal_the_model(host: Host, tmp_path: Path, direct: bool) -> None:
    model = bytearray(make_source(tmp_path / "image"))
    size = len(model)
    state = host.client.attach(host.spec("m", tmp_path / "image"))
    chance = random.Random(7)
    grain = 512 if direct else 1
    file = os.open(state.path, os.O_RDWR | (os.O_DIRECT if direct else 0))
    buffer = mmap.mmap(-1, 2 * MIB)
    try:
        for _ in range(600):
            offset = chance.randrange(size) // grain * grain
            length = min(chance.choice([grain, 4096, 5000, 65536, MIB + 4096]) // grain * grain, size - offset)
            view = memoryview(buffer)[:length]
            match chance.randrange(6):
                case 0 | 1:
                    view[:] = data = chance.randbytes(length)
                    assert os.pwritev(file, [view], offset) == length
                    model[offset : offset + length] = data
                case 2:
                    allocate(file, chance.choice([PUNCH_HOLE_KEEP_SIZE, ZERO_RANGE]), offset, length)
                    model[offset : offset + length] = bytes(length)
                case 3 if chance.random() < 0.2:
                    os.fsync(file)
                case _:
                    assert os.preadv(file, [view], offset) == length
                    assert view == model[offset : offset + length]
            view.release()
    finally:
        os.close(file)
    host.client.detach("m")
    assert host.mounts() == []
    assert host.processes() == []
    assert host.client.attach(host.spec("m", tmp_path / "image")).path.read_bytes() == model
    assert (tmp_path / "image").read_bytes() != model


def test_the_file_system_is_one_disk(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 8 * MIB)
    path = host.client.attach(host.spec("m", tmp_path / "image")).path
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_size == 8 * MIB
    with pytest.raises(PermissionError):
        (path.parent / "other").touch()
    with pytest.raises(PermissionError):
        path.unlink()
    with pytest.raises(PermissionError), path.open("r+b") as file:
        file.truncate(10)
    with path.open("r+b", buffering=0) as file:
        # The page cache takes what is beyond the end, the disk does not.
        os.pwrite(file.fileno(), b"x" * 4096, 8 * MIB)
        with pytest.raises(OSError, match="File too large"):
            os.fsync(file.fileno())
        os.truncate(path, 8 * MIB)
    device = path.stat().st_dev
    limits = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
    assert (limits / "read_ahead_kb").read_text() == "1024\n"
    assert (limits / "strict_limit").read_text() == "1\n"
    # The kernel keeps it as a part of the memory.
    assert int((limits / "max_bytes").read_text()) <= MAX_DIRTY * 1.01
    assert run("stat", "-f", "-c", "%S %b", path).stdout == f"4096 {2 * MIB // 1024}\n"


def test_loop_mounted_file_system(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.ext4", "-q", image)
    state = host.client.attach(host.spec("m", image))
    loop = run("losetup", "-f", "--show", state.path).stdout.strip()
    mount_point = tmp_path / "mounted"
    mount_point.mkdir()
    try:
        run("mount", "-o", "discard", loop, mount_point)
        try:
            data = random.Random(1).randbytes(20 * MIB)
            (mount_point / "file").write_bytes(data)
            run("fstrim", mount_point)
        finally:
            run("umount", mount_point)
    finally:
        run("losetup", "-d", loop)
    host.client.detach("m")
    state = host.client.attach(host.spec("m", image))
    run("e2fsck", "-fn", state.path)
    assert run("debugfs", "-R", f"dump /file {tmp_path / 'dumped'}", state.path).returncode == 0
    assert (tmp_path / "dumped").read_bytes() == data


def test_stats_follow_the_work(host: Host, tmp_path: Path) -> None:
    model = make_source(tmp_path / "image")
    path = host.client.attach(host.spec("m", tmp_path / "image")).path
    with path.open("r+b", buffering=0) as file:
        file.write(b"x" * 8192)
        os.fsync(file.fileno())
    stats = host.client.state("m").stats
    assert (stats.private_bytes, stats.recalled_bytes, stats.writes) == (8192, 0, 1)
    assert path.read_bytes()[8192:] == model[8192:]
    stats = host.client.state("m").stats
    assert stats.recalled_bytes == stats.recall_store_bytes == len(model) // 2
    assert stats.reads > 0
    second = host.client.attach(host.spec("n", tmp_path / "image"))
    assert second.path.read_bytes() == model
    stats = host.client.state("n").stats
    assert (stats.recalled_bytes, stats.recall_store_bytes) == (0, len(model) // 2)
    assert [state.spec.id for state in host.client.states()] == ["m", "n"]


def test_calls_are_idempotent_and_errors_have_their_class(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 4 * MIB)
    spec = host.spec("m", tmp_path / "image")
    first = host.client.attach(spec)
    assert host.client.attach(spec).path == first.path
    with pytest.raises(ConflictError, match="another source"):
        host.client.attach(host.spec("m", tmp_path / "other"))
    with pytest.raises(NotFoundError, match="No such file"):
        host.client.attach(host.spec("n", tmp_path / "gone"))
    with pytest.raises(UsageError):
        host.client.attach(host.spec("m", tmp_path / "image").model_copy(update={"id": "../m"}))
    assert not (host.paths.mounts / "n").exists()
    host.client.flush("m")
    with pytest.raises(NotFoundError):
        host.client.state("n")
    with pytest.raises(NotFoundError):
        host.client.flush("n")
    for _ in range(2):
        host.client.detach("m")
    with pytest.raises(NotFoundError):
        host.client.state("m")
    for _ in range(2):
        host.client.destroy("m")
    host.kill()
    with pytest.raises(UnavailableError):
        DriverClient(host.paths.driver_socket).states()


def test_detach_waits_for_users(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 4 * MIB)
    spec = host.spec("m", tmp_path / "image")
    with host.client.attach(spec).path.open("rb") as file:
        with pytest.raises(ConflictError, match="in use"):
            host.client.detach("m")
        assert len(file.read()) == 4 * MIB
    host.client.detach("m")


@pytest.mark.parametrize("detached", [False, True])
def test_destroy_leaves_nothing(host: Host, tmp_path: Path, detached: bool) -> None:
    make_source(tmp_path / "image", 4 * MIB)
    first, second = host.spec("m", tmp_path / "image"), host.spec("n", tmp_path / "image")
    (first.directory).mkdir(parents=True)
    (first.directory / "of-others").touch()
    for spec in (first, second):
        host.client.attach(spec).path.read_bytes()
    if detached:
        host.client.detach("m")
    user = None if detached else (first.directory / "disk" / "disk").open("rb")
    host.client.destroy("m")
    if user is not None:
        with pytest.raises(OSError, match="not connected"):
            os.fsync(user.fileno())
        with contextlib.suppress(OSError):
            user.close()
    assert [path.name for path in first.directory.iterdir()] == ["of-others"]
    assert any(path.is_dir() for path in host.paths.recall.iterdir()), "the other disk still uses the recall store"
    assert (second.directory / "disk" / "disk").read_bytes() == (tmp_path / "image").read_bytes()
    host.client.destroy("n")
    assert not second.directory.exists()
    assert sorted(path.name for path in host.paths.recall.iterdir()) == [".ledger", ".lock"]
    assert host.mounts() == []
    assert host.processes() == []
    assert list((host.root / "driver").glob("*.json")) == []


def test_source_that_fails_and_comes_back(host: Host, tmp_path: Path) -> None:
    image = tmp_path / "image"
    model = make_source(image, 8 * MIB)
    path = host.client.attach(host.spec("m", image)).path
    before = image.stat().st_mtime_ns
    with path.open("r+b", buffering=0) as file:
        assert os.pread(file.fileno(), MIB, 3 * MIB) == model[3 * MIB : 4 * MIB]
        # An image that looks changed fails every read.
        os.utime(image, ns=(before, before + 10**9))
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(file.fileno(), 4096, 5 * MIB + 8192)
        # What was recalled, holes and blocks written go on.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), MIB, 3 * MIB) == model[3 * MIB : 4 * MIB]
        assert os.pread(file.fileno(), 4096, 6 * MIB) == bytes(4096)
        os.pwrite(file.fileno(), b"w" * 4096, 5 * MIB)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 4096, 5 * MIB) == b"w" * 4096
        os.fsync(file.fileno())
        os.utime(image, ns=(before, before))
        got = b"".join(os.pread(file.fileno(), MIB, at) for at in range(5 * MIB, 8 * MIB, MIB))
        assert got == b"w" * 4096 + model[5 * MIB + 4096 :]
    assert host.client.state("m").stats.read_errors >= 2


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder)
    yield folder
    run("umount", "-l", folder)


def fill(file: int) -> int:
    """Write and flush MiB after MiB until there is no room, and return how many bytes found some."""
    for at in range(0, os.fstat(file).st_size, MIB):
        os.pwrite(file, b"n" * MIB, at)
        try:
            os.fsync(file)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return at
    raise AssertionError("there was room for all")


def test_private_store_without_room(host: Host, tmp_path: Path, small: Path) -> None:
    model = bytearray(make_source(tmp_path / "image"))
    state = host.client.attach(host.spec("m", tmp_path / "image", directory=small / "m", hold_seconds=0))
    try:
        with state.path.open("r+b", buffering=0) as file, state.path.open("r+b", buffering=0) as other:
            written = fill(file.fileno())
            assert 8 * MIB < written < 16 * MIB
            # Whoever has the file open is told, once.
            with pytest.raises(OSError, match="No space left"):
                os.fsync(other.fileno())
            os.fsync(other.fileno())
            model[:written] = b"n" * written
            # Blocks of the failed write are old or new, never anything else; those beyond are the source's.
            got = b"".join(os.pread(file.fileno(), MIB, at) for at in range(0, len(model), MIB))
            assert got[:written] == model[:written]
            assert got[written + MIB :] == model[written + MIB :]
            allocate(file.fileno(), PUNCH_HOLE_KEEP_SIZE, 0, 8 * MIB)
            model[: 8 * MIB] = bytes(8 * MIB)
            os.pwrite(file.fileno(), b"n" * MIB, written)
            model[written : written + MIB] = b"n" * MIB
            os.fsync(file.fileno())
        host.kill_worker("m", small / "m")
        assert state.path.read_bytes() == model
    finally:
        host.client.destroy("m")


def test_space_made_in_time_loses_nothing(host: Host, tmp_path: Path, small: Path) -> None:
    """Writes that were acknowledged and find no space are held, over a killed worker too, while reads go on."""
    model = bytearray(make_source(tmp_path / "image"))
    state = host.client.attach(host.spec("m", tmp_path / "image", directory=small / "m", hold_seconds=60))
    try:
        free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
        with (small / "ballast").open("wb") as ballast:
            os.posix_fallocate(ballast.fileno(), 0, free - MIB)
        with state.path.open("r+b", buffering=0) as file:
            # Every second block, so that none are written together.
            for at in range(0, MIB + MIB // 4, 4096):
                os.pwrite(file.fileno(), b"h" * 4096, 2 * at)
                model[2 * at : 2 * at + 4096] = b"h" * 4096
            outcome: list[str] = []

            def flush() -> None:
                try:
                    os.fsync(file.fileno())
                    outcome.append("flushed")
                except OSError as error:
                    outcome.append(str(error))

            flusher = threading.Thread(target=flush)
            flusher.start()
            wait_for(lambda: host.client.state("m").stats.writes == 320)
            restarts = host.client.state("m").stats.worker_restarts
            host.kill_worker("m", small / "m")
            wait_for(lambda: host.client.state("m").stats.worker_restarts > restarts)
            assert os.pread(file.fileno(), MIB, 9 * MIB) == model[9 * MIB : 10 * MIB]
            assert outcome == []
            (small / "ballast").unlink()
            flusher.join(60)
            assert outcome == ["flushed"]
        host.kill()
        host.kill_worker("m", small / "m")
        wait_for(lambda: not host.processes())
        host.start()
        assert host.client.attach(state.spec).path.read_bytes() == model
        assert host.client.state("m").stats.write_errors == 0
    finally:
        host.client.destroy("m")


def test_flush_call_covers_what_the_page_cache_holds(host: Host, tmp_path: Path) -> None:
    model = bytearray(make_source(tmp_path / "image"))
    state = host.client.attach(host.spec("m", tmp_path / "image"))
    with contextlib.suppress(OSError), state.path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"f" * MIB, MIB)
        model[MIB : 2 * MIB] = b"f" * MIB
        assert host.client.state("m").stats.writes == 0, "the write went through: this test tests nothing"
        host.client.flush("m")
        host.kill()
        host.kill_worker("m")
        wait_for(lambda: not host.processes())
    host.start()
    assert host.client.attach(state.spec).path.read_bytes() == model


def test_destroy_does_not_write_what_is_in_the_page_cache(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image")
    state = host.client.attach(host.spec("m", tmp_path / "image"))
    file = os.open(state.path, os.O_RDWR)
    try:
        for at in range(0, 8 * MIB, MIB):
            os.pwrite(file, b"d" * MIB, at)
        # Nobody could write them now.
        suspend(host.worker("m"))
        host.client.destroy("m")
        assert (host.mounts(), host.processes()) == ([], [])
        with pytest.raises(OSError, match=r"not connected|Input/output|connection abort"):
            os.fsync(file)
    finally:
        with contextlib.suppress(OSError):
            os.close(file)


def test_attach_without_room(host: Host, tmp_path: Path, small: Path) -> None:
    make_source(tmp_path / "image")
    with (small / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 16 * MIB - 65536)
    with pytest.raises(NoSpaceError):
        host.client.attach(host.spec("m", tmp_path / "image", directory=small / "m"))
    assert not (small / "m").exists()
    (small / "ballast").unlink()
    host.client.attach(host.spec("m", tmp_path / "image", directory=small / "m"))
    host.client.destroy("m")


def test_recall_store_without_room(host: Host, tmp_path: Path, small: Path) -> None:
    model = make_source(tmp_path / "image")
    state = host.client.attach(host.spec("m", tmp_path / "image", recall_directory=small / "recall"))
    try:
        assert state.path.read_bytes() == model
        assert host.client.state("m").stats.recall_store_bytes < 16 * MIB
    finally:
        host.client.destroy("m")


def test_damaged_stores_are_an_error_of_attach(host: Host, tmp_path: Path) -> None:
    make_source(tmp_path / "image", 4 * MIB)
    spec = host.spec("m", tmp_path / "image")
    with host.client.attach(spec).path.open("r+b") as file:
        file.write(b"x" * 4096)
    host.client.detach("m")
    with (spec.directory / "private" / "map").open("r+b") as file:
        file.seek(1536 + 20)
        file.write(b"torn")
    with pytest.raises(CorruptError, match="map sector 0"):
        host.client.attach(spec)
    assert host.mounts() == []
    host.client.destroy("m")
    assert not spec.directory.exists()


def test_slow_source_does_not_hold_up_hits(host: Host, tmp_path: Path) -> None:
    """A source on a FIFO-like stall: reads of recalled and written blocks are answered meanwhile."""
    image = tmp_path / "image"
    model = make_source(image, 8 * MIB)
    outer = host.client.attach(host.spec("outer", image))
    inner = host.client.attach(host.spec("inner", outer.path))
    with inner.path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"hit" * 4096, 0)
        # The source of `inner` is `outer`; stopping outer's worker stalls every recall of inner.
        pid = host.worker("outer")
        suspend(pid)
        waiting = [
            threading.Thread(target=os.pread, args=(file.fileno(), 4096, MIB + at * 65536), daemon=True)
            for at in range(12)
        ]
        try:
            for thread in waiting:
                thread.start()
            wait_for(lambda: host.client.state("inner").stats.reads >= 8)
            os.posix_fadvise(file.fileno(), 0, 4096, os.POSIX_FADV_DONTNEED)
            assert os.pread(file.fileno(), 12288, 0) == b"hit" * 4096
            os.pwrite(file.fileno(), b"x" * 4096, 3 * MIB)
            os.fsync(file.fileno())
        finally:
            os.kill(pid, signal.SIGCONT)
        for thread in waiting:
            thread.join(60)
            assert not thread.is_alive()
        assert os.pread(file.fileno(), MIB, MIB) == model[MIB : 2 * MIB]
    host.client.destroy("inner")
