"""The worker: one process that serves one disk, started by the supervisor and able to outlive it.

It gets its task as one JSON line on stdin and answers with one on stdout when the disk is up. Its socket hands the
/dev/fuse descriptor to a new supervisor. Kill it at any time: writes that were flushed are on disk, all others are in
the page cache (of the private store's files, or still of the mount), and the kernel sends the next worker what this one
had not answered. It ends when the mount is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from livemount._native import PseudoDisk, set_io_flusher
from livemount.core.errors import ConflictError, LivemountError, UnavailableError
from livemount.driver.layout import Counter, DiskFiles, Facts
from livemount.driver.profile import Profile
from livemount.driver.protocol import MESSAGE_LIMIT, Message, encode, error_message, listen
from livemount.driver.recall_store import RecallStore, chunk_size_for
from livemount.driver.recaller import Recaller

log = logging.getLogger(__name__)

IO_THREADS = 3
RECALL_THREADS = 88
"""The most there are, while there is that much to recall: at 100 ms of latency, 30 times a serial reader."""
CHECKPOINT_INTERVAL = 30.0
LOCK_PATIENCE = 30.0


class Worker:
    """One disk, open."""

    def __init__(self, task: Message) -> None:
        """Open source (when the disk is new, or `eager`) and stores. Raises errors for the user."""
        self._files = DiskFiles(Path(task["directory"]))
        self._descriptor = int(task["descriptor"])
        self._files.private.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = self._take_lock()
        password_file = task["password_file"]
        recaller = Recaller(task["source"], Path(password_file) if password_file else None, task["hold_seconds"])
        facts = self._files.facts()
        holes: Iterable[tuple[int, int]] = ()
        if facts is None or task["eager"]:
            source = recaller.source()
            found = Facts(source.identity, source.size, chunk_size_for(source.chunk_size))
            if facts is not None and (facts.identity, facts.size) != (found.identity, found.size):
                raise ConflictError(f"{self._files.folder} holds the writes of a disk from another source")
            if facts is None:
                facts = found
                self._files.write_facts(facts)
            holes = ((extent.offset, extent.length) for extent in source.extents(0, source.size) if extent.hole)
        recaller.facts = facts
        self._recaller = recaller
        self._eager = bool(task["eager"])
        self._recall_store = RecallStore(Path(task["recall_directory"]), facts)
        self._recall_store.join(task["id"], holes)
        self._files.prepare_counters()
        self._disk = PseudoDisk(
            self._files.private,
            self._recall_store.folder,
            facts.size,
            facts.chunk_size,
            recaller,
            RECALL_THREADS,
            task["hold_seconds"],
        )
        self._checkpointed = self._recalled()
        profile = task["profile"]
        self._profile_lock = threading.Lock()
        self._profile = Profile(Path(profile), facts.chunk_size) if profile else None

    def _take_lock(self) -> int:
        descriptor = os.open(self._files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"another worker has {self._files.private} open") from None
                time.sleep(0.02)
            else:
                return descriptor

    def _recalled(self) -> int:
        return self._files.read_counters()[Counter.RECALLED_BYTES]

    def start(self) -> None:
        """Listen for the supervisor, then serve."""
        server = listen(self._files.control)
        server.settimeout(CHECKPOINT_INTERVAL)
        threading.Thread(target=self._control, args=(server,), daemon=True).start()
        self._disk.serve(self._descriptor, IO_THREADS)
        if self._profile is not None and self._eager:
            self._disk.prefetch(self._profile.chunks)

    def finish(self) -> None:
        """Wait for the unmount; leave everything durable."""
        self._disk.wait()
        self._recaller.stop()
        self._disk.close()
        self._checkpoint()

    def _save_profile(self) -> None:
        if self._profile is not None:
            with self._profile_lock:
                self._profile.save(self._disk.first_reads(), complete=self._eager)

    def _checkpoint(self) -> None:
        self._save_profile()
        recalled = self._recalled()
        if recalled != self._checkpointed:
            self._recall_store.checkpoint()
            self._checkpointed = recalled

    def _control(self, server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                try:
                    self._checkpoint()
                except OSError as error:
                    log.warning("what was recalled could not be noted: %s", error)
                continue
            with connection:
                connection.settimeout(60)
                try:
                    self._answer(connection)
                except (OSError, ValueError) as error:
                    log.warning("control: %s", error)

    def _answer(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as lines:
            request = json.loads(lines.readline(MESSAGE_LIMIT))
        match request["call"]:
            case "descriptor":
                socket.send_fds(connection, [encode({"result": os.getpid()})], [self._descriptor])
            case "save-profile":
                try:
                    self._save_profile()
                except OSError as error:
                    connection.sendall(encode(error_message(error)))
                else:
                    connection.sendall(encode({"result": None}))


def main() -> int:
    """Run a worker."""
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(message)s", level=logging.INFO)
    line = sys.stdin.buffer.readline(MESSAGE_LIMIT)
    if not line.endswith(b"\n"):
        return 1
    with contextlib.suppress(OSError):
        set_io_flusher()
    try:
        worker = Worker(json.loads(line))
        worker.start()
    except Exception as error:
        if not isinstance(error, LivemountError):
            log.exception("the worker cannot start")
        os.write(1, encode(error_message(error)))
        return 1
    os.write(1, encode({"result": None}))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    worker.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
