"""One attached disk as the supervisor sees it: its mount, its worker, and the thread that replaces a dead worker.

The supervisor holds the connection's descriptor as well as the worker, so either may die: a new worker gets it from
the supervisor, a new supervisor from the worker. Only when both are gone is the mount dead; then it is taken away and
made again over the stores.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from livemount import _native
from livemount.core.errors import ConflictError, LivemountError, UnavailableError
from livemount.driver import mounting, protocol
from livemount.driver.api import Latency, PseudoDiskSpec, PseudoDiskState, PseudoDiskStats
from livemount.driver.layout import LATENCY_BUCKETS, Counter, DiskFiles, LatencyPlace
from livemount.driver.profile import profile_path
from livemount.driver.recall_store import RecallStore

log = logging.getLogger(__name__)

START_TIMEOUT = 120.0
"""Seconds a worker may take to open its source and stores."""
END_TIMEOUT = 60.0
UNMOUNT_PATIENCE = 5.0
"""Seconds in which users of a disk (loop devices end late) may still let go of it."""
SLOWEST_RETRY = 10.0
MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
"""Of a worker: chunks come and go in all threads, in one arena, and their memory is used again while there is work (new
pages cost more than decoding); the worker gives it back when it idles. What is larger than a chunk always goes back."""
PROFILE_PATIENCE = 5.0
"""Seconds that a disk's end waits for its boot profile, which is only a hint."""


class Worker:
    """A running worker process, ours or one that an earlier supervisor started."""

    def __init__(self, pid: int, pidfd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self._child = child
        self.pid = pid
        self._pidfd = pidfd

    def wait(self, timeout: float | None) -> bool:
        """Whether it ended within `timeout` seconds."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        ended = bool(poll.poll(None if timeout is None else timeout * 1000))
        if ended and self._child is not None:
            self._child.wait()
        return ended

    def kill(self) -> None:
        """End it at once and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self.wait(None)

    def __del__(self) -> None:
        os.close(self._pidfd)


class AttachedDisk:
    """A disk that is up, or that is being brought up again. `lock` is held for every change of it."""

    def __init__(self, spec: PseudoDiskSpec, *, keep_recall_store: bool) -> None:
        """`keep_recall_store`: also when this is its last disk."""
        self.spec = spec
        self._keep_recall_store = keep_recall_store
        self.files = DiskFiles(spec.directory.resolve())
        self.lock = threading.RLock()
        self._descriptor: int | None = None
        self._worker: Worker | None = None
        self._up = threading.Event()
        self._ended = threading.Event()
        self._failure: Exception | None = None

    def attach(self) -> None:
        """Bring the disk up for the first time, with errors for the user, and watch over it from then on."""
        with self.lock:
            new = not self.files.private.exists()
            try:
                self._mount()
                self._start_worker(eager=True)
            except BaseException:
                self._unmount_by_force()
                if new:
                    self.delete()
                raise
            self._watch()

    def resume(self) -> None:
        """Take over the disk of an earlier supervisor, or bring it up again from its stores; never fails."""
        with self.lock:
            self._adopt()
        self._watch()

    def _adopt(self) -> None:
        deadline = time.monotonic() + END_TIMEOUT
        while self._worker_lives() and time.monotonic() < deadline:
            try:
                with protocol.connect(self.files.control, 5) as client:
                    client.sendall(protocol.encode({"call": "descriptor"}))
                    answer, descriptors, _, _ = socket.recv_fds(client, 4096, 1)
                pid = json.loads(answer)["result"]
                worker = Worker(pid, os.pidfd_open(pid))
            except (OSError, ValueError):
                time.sleep(0.05)
                continue
            self._descriptor, self._worker = descriptors[0], worker
            self._up.set()
            log.info("disk %s: worker %d goes on", self.spec.id, worker.pid)
            return
        log.info("disk %s: no worker", self.spec.id)

    def _worker_lives(self) -> bool:
        return self._is_locked() and mounting.device_number(self.files.mount_point) is not None

    def _is_locked(self) -> bool:
        try:
            with self.files.lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def _mount(self) -> None:
        mounting.clear(self.files.mount_point)
        self.files.mount_point.mkdir(parents=True, exist_ok=True)
        self._descriptor = mounting.mount(self.files.mount_point)

    def _start_worker(self, *, eager: bool) -> None:
        if self._descriptor is None or mounting.device_number(self.files.mount_point) is None:
            self._close_descriptor()
            self._mount()
        assert self._descriptor is not None  # noqa: S101  (for the type checker)
        self.files.private.mkdir(parents=True, exist_ok=True, mode=0o700)
        profile = self.spec.profile
        task = {
            "id": self.spec.id,
            "source": self.spec.source,
            "password_file": str(self.spec.password_file) if self.spec.password_file else None,
            "directory": str(self.spec.directory),
            "recall_directory": str(self.spec.recall_directory),
            "profile": str(profile_path(self.spec.recall_directory, profile)) if profile else None,
            "hold_seconds": self.spec.hold_seconds,
            "descriptor": self._descriptor,
            "eager": eager,
        }
        with self.files.log.open("ab") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "livemount.driver.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                pass_fds=[self._descriptor],
                # A session of its own: signals meant for the supervisor are not for it.
                start_new_session=True,
                env={**os.environ, **MEMORY},
            )
        worker = Worker(child.pid, os.pidfd_open(child.pid), child)
        try:
            protocol.result_of(self._first_answer(child, task))
        except BaseException:
            worker.kill()
            raise
        self._worker = worker
        self._up.set()

    def _first_answer(self, child: subprocess.Popen[bytes], task: protocol.Message) -> protocol.Message:
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        with child.stdin, child.stdout:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.write(protocol.encode(task))
                child.stdin.flush()
            poll = select.poll()
            poll.register(child.stdout, select.POLLIN)
            line = child.stdout.readline() if poll.poll(START_TIMEOUT * 1000) else b""
        if not line.endswith(b"\n"):
            raise UnavailableError(f"the worker of disk {self.spec.id} did not start", hint=f"see {self.files.log}")
        answer: protocol.Message = json.loads(line)
        return answer

    def _watch(self) -> None:
        threading.Thread(target=self._keep_alive, daemon=True, name=f"watch-{self.spec.id}").start()

    def _keep_alive(self) -> None:
        pause = 0.05
        while not self._ended.is_set():
            worker = self._worker
            if worker is not None:
                worker.wait(None)
            with self.lock:
                if self._ended.is_set():
                    return
                if worker is not self._worker:
                    continue
                self._worker = None
                self._up.clear()
                started = time.monotonic()
                try:
                    self._start_worker(eager=False)
                    if worker is not None:
                        self.files.count_restart()
                        log.warning("disk %s: worker %d died and was replaced", self.spec.id, worker.pid)
                    pause = 0.05
                    continue
                except (LivemountError, OSError) as error:
                    log.error("disk %s: %s", self.spec.id, error)
                    self._failure = error
            self._ended.wait(max(0.0, pause - (time.monotonic() - started)))
            pause = min(2 * pause, SLOWEST_RETRY)

    def wait_until_up(self) -> None:
        """Return when a worker serves the disk. Raises why none does."""
        if not self._up.wait(END_TIMEOUT):
            raise UnavailableError(
                f"the disk {self.spec.id} cannot be brought up again: {self._failure}", hint=f"see {self.files.log}"
            )

    def flush(self) -> None:
        """Make everything durable; a worker that is just being replaced is waited for."""
        deadline = time.monotonic() + END_TIMEOUT
        while True:
            try:
                mounting.sync(self.files.disk, deadline - time.monotonic())
            except UnavailableError:
                if time.monotonic() > deadline or self._ended.is_set():
                    raise
                time.sleep(0.05)
            else:
                return

    def detach(self) -> None:
        """Flush and unmount. Raises `ConflictError` when somebody still uses the disk."""
        self.flush()
        with self.lock:
            self._unmount()
            self._ended.set()
            if self._worker is not None and not self._worker.wait(END_TIMEOUT):
                self._worker.kill()
            self._close_descriptor()

    def _unmount(self) -> None:
        deadline = time.monotonic() + UNMOUNT_PATIENCE
        while mounting.device_number(self.files.mount_point) is not None:
            if self._worker is None:
                mounting.clear(self.files.mount_point)
                return
            try:
                _native.unmount(self.files.mount_point, force=False)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"the disk {self.files.disk} is still in use: {error.strerror}",
                        hint="remove its iSCSI target and loop devices first",
                    ) from error
                time.sleep(0.05)

    def _unmount_by_force(self) -> None:
        self._ended.set()
        mounting.clear(self.files.mount_point)
        if self._worker is not None:
            self._worker.kill()
        self._close_descriptor()

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def destroy(self) -> None:
        """Take the disk down whoever uses it, and delete its stores; its boot profile stays."""
        if self.spec.profile:
            with contextlib.suppress(LivemountError):
                protocol.call(self.files.control, {"call": "save-profile"}, timeout=PROFILE_PATIENCE)
        with self.lock:
            self._unmount_by_force()
            self.delete()

    def remove(self) -> None:
        """Delete what is left of a disk that is not attached, after an earlier supervisor's worker is gone."""
        mounting.clear(self.files.mount_point)
        deadline = time.monotonic() + END_TIMEOUT
        while self._is_locked():
            if time.monotonic() > deadline:
                raise UnavailableError(f"a worker of disk {self.spec.id} does not end", hint=f"see {self.files.log}")
            time.sleep(0.02)
        self.delete()

    def delete(self) -> None:
        """Delete the files of a disk that is down."""
        facts = self.files.facts()
        if facts is not None:
            RecallStore(self.spec.recall_directory, facts).leave(self.spec.id, keep=self._keep_recall_store)
        shutil.rmtree(self.files.private, ignore_errors=True)
        for folder in (self.files.mount_point, self.files.folder):
            # The folder may hold files of others.
            with contextlib.suppress(OSError):
                folder.rmdir()

    def state(self) -> PseudoDiskState:
        """Path and counters."""
        facts = self.files.facts()
        counters = self.files.read_words()

        def latency(place: LatencyPlace) -> Latency:
            buckets = counters[place + 1 : place + 1 + LATENCY_BUCKETS]
            return Latency(seconds=counters[place] / 1e6, buckets=buckets)

        stats = PseudoDiskStats(
            size=facts.size if facts else 0,
            private_bytes=counters[Counter.PRIVATE_BYTES],
            recalled_bytes=counters[Counter.RECALLED_BYTES],
            recall_store_bytes=RecallStore(self.spec.recall_directory, facts).stored_bytes() if facts else 0,
            reads=counters[Counter.READS],
            writes=counters[Counter.WRITES],
            read_errors=counters[Counter.READ_ERRORS],
            worker_restarts=counters[Counter.WORKER_RESTARTS],
            prefetched_bytes=counters[Counter.PREFETCHED_BYTES],
            read_bytes=counters[Counter.READ_BYTES],
            written_bytes=counters[Counter.WRITTEN_BYTES],
            write_errors=counters[Counter.WRITE_ERRORS],
            zero_hits=counters[Counter.ZERO_HITS],
            private_hits=counters[Counter.PRIVATE_HITS],
            recall_hits=counters[Counter.RECALL_HITS],
            misses=counters[Counter.MISSES],
            read_latency=latency(LatencyPlace.READ),
            write_latency=latency(LatencyPlace.WRITE),
        )
        return PseudoDiskState(spec=self.spec, path=self.files.disk, stats=stats)
