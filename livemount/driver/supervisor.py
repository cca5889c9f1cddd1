"""The supervisor: attaches disks, remembers them in files, answers clients.

`ROOT/driver/ID.json` is the record of a disk: its spec, and whether it is attached (a detached disk keeps its stores
until it is destroyed). A record is written before the disk comes up and deleted after it is gone, so a supervisor
that was killed anywhere continues: it takes over what still runs and brings up again what does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import socket
import threading
from collections import defaultdict
from pathlib import Path
from typing import Any

from livemount.core.errors import ConflictError, LivemountError, NotFoundError, UsageError
from livemount.core.files import replace_file
from livemount.core.machine import Frozen
from livemount.core.settings import HostPaths
from livemount.driver import protocol
from livemount.driver.api import DISK_ID, PseudoDiskSpec, PseudoDiskState, RecallStats
from livemount.driver.attached import AttachedDisk
from livemount.driver.pinned import Pinned
from livemount.driver.recall_stores import Keeper, RecallPolicy

log = logging.getLogger(__name__)


class Record(Frozen):
    """What the supervisor remembers of a disk."""

    spec: PseudoDiskSpec
    attached: bool


class Supervisor:
    """The disks of one host. Calls may come from many threads; those for one disk follow each other."""

    def __init__(self, paths: HostPaths, recall: RecallPolicy) -> None:
        """Take over the disks of an earlier supervisor. Raises `ConflictError` when one is running."""
        self._folder = paths.root / "driver"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock_file = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_file)
            raise ConflictError(f"a pseudo-disk driver is already running for {paths.root}") from None
        self._recall = paths.recall
        self._keeper = Keeper(recall)
        self._pinned = Pinned(self._folder / "unpin")
        self._disks: dict[str, AttachedDisk] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        records = [Record.model_validate_json(path.read_bytes()) for path in sorted(self._folder.glob("*.json"))]
        for folder in {paths.recall, *(record.spec.recall_directory for record in records)}:
            try:
                self._keeper.stores(folder)
            except (OSError, LivemountError) as error:
                # The disks come first; the keeper tries again.
                log.error("recall stores in %s: %s", folder, error)
        for record in records:
            if record.attached:
                disk = self._disk(record.spec)
                disk.resume()
                self._disks[record.spec.id] = disk

    def _disk(self, spec: PseudoDiskSpec) -> AttachedDisk:
        return AttachedDisk(spec, keep_recall_store=self._keeper.policy.keep_unused)

    def _record_path(self, id: str) -> Path:
        if re.fullmatch(DISK_ID, id) is None:
            raise UsageError(f"{id!r} cannot name a disk")
        return self._folder / f"{id}.json"

    def _record(self, id: str) -> Record | None:
        try:
            return Record.model_validate_json(self._record_path(id).read_bytes())
        except FileNotFoundError:
            return None

    def _write_record(self, record: Record) -> None:
        replace_file(self._record_path(record.spec.id), record.model_dump_json().encode())

    def _attached(self, id: str) -> AttachedDisk:
        try:
            return self._disks[id]
        except KeyError:
            raise NotFoundError(f"the disk {id!r} is not attached") from None

    def attach(self, spec: PseudoDiskSpec) -> PseudoDiskState:
        """See `PseudoDiskDriver.attach`."""
        path = self._record_path(spec.id)
        with self._locks[spec.id]:
            before = self._record(spec.id)
            if before is not None and before.spec != spec:
                raise ConflictError(
                    f"the disk {spec.id!r} exists with another source or other folders",
                    hint="destroy it, or choose another name",
                )
            if spec.id not in self._disks:
                self._write_record(Record(spec=spec, attached=True))
                disk = self._disk(spec)
                try:
                    self._keeper.stores(spec.recall_directory)
                    disk.attach()
                except BaseException:
                    if before is None:
                        path.unlink()
                    else:
                        self._write_record(before)
                    raise
                self._disks[spec.id] = disk
            self._disks[spec.id].wait_until_up()
            return self._disks[spec.id].state()

    def detach(self, id: str) -> None:
        """See `PseudoDiskDriver.detach`."""
        with self._locks[id]:
            disk = self._disks.get(id)
            if disk is not None:
                disk.detach()
                self._write_record(Record(spec=disk.spec, attached=False))
                del self._disks[id]

    def destroy(self, id: str) -> None:
        """See `PseudoDiskDriver.destroy`."""
        path = self._record_path(id)
        with self._locks[id]:
            disk = self._disks.pop(id, None)
            record = self._record(id)
            if record is not None:
                # Killed from here on, the next supervisor does not bring it up again.
                self._write_record(Record(spec=record.spec, attached=False))
            if disk is not None:
                disk.destroy()
            elif record is not None:
                self._disk(record.spec).remove()
            path.unlink(missing_ok=True)
        self._keeper.wake()

    def state(self, id: str) -> PseudoDiskState:
        """See `PseudoDiskDriver.state`."""
        return self._attached(id).state()

    def states(self) -> list[PseudoDiskState]:
        """See `PseudoDiskDriver.states`."""
        return [disk.state() for disk in list(self._disks.values())]

    def flush(self, id: str) -> None:
        """See `PseudoDiskDriver.flush`."""
        self._attached(id).flush()

    def recall_stats(self) -> RecallStats:
        """See `PseudoDiskDriver.recall_stats`."""
        return self._keeper.stores(self._recall).stats()

    def pin(self, source: str, holder: str, reason: str, password_file: Path | None) -> None:
        """See `PseudoDiskDriver.pin`."""
        self._pinned.pin(source, holder, reason, password_file)

    def unpin(self, source: str, holder: str, password_file: Path | None) -> None:
        """See `PseudoDiskDriver.unpin`."""
        self._pinned.unpin(source, holder, password_file)

    def answer(self, request: protocol.Message) -> Any:
        """Do what a client asked for; the result as JSON."""
        match request:
            case {"call": "attach", "spec": spec}:
                return self.attach(PseudoDiskSpec.model_validate(spec)).model_dump(mode="json")
            case {"call": "detach", "id": str(id)}:
                return self.detach(id)
            case {"call": "destroy", "id": str(id)}:
                return self.destroy(id)
            case {"call": "state", "id": str(id)}:
                return self.state(id).model_dump(mode="json")
            case {"call": "states"}:
                return [state.model_dump(mode="json") for state in self.states()]
            case {"call": "flush", "id": str(id)}:
                return self.flush(id)
            case {"call": "recall-stats"}:
                return self.recall_stats().model_dump(mode="json")
            case {"call": "pin", "source": str(source), "holder": str(holder), "reason": str(reason)}:
                return self.pin(source, holder, reason, _path(request.get("password")))
            case {"call": "unpin", "source": str(source), "holder": str(holder)}:
                return self.unpin(source, holder, _path(request.get("password")))
        raise UsageError("the request is malformed")


def _path(text: object) -> Path | None:
    return Path(str(text)) if text else None


def _serve_client(supervisor: Supervisor, client: socket.socket) -> None:
    with client, client.makefile("rb") as lines:
        try:
            answer: protocol.Message = {"result": supervisor.answer(json.loads(lines.readline(protocol.MESSAGE_LIMIT)))}
        except Exception as error:
            if not isinstance(error, LivemountError):
                log.exception("a request failed")
            answer = protocol.error_message(error)
        with contextlib.suppress(OSError):
            client.sendall(protocol.encode(answer))


def serve(paths: HostPaths, recall: RecallPolicy) -> None:
    """Run the service until it is killed; the disks go on without it."""
    supervisor = Supervisor(paths, recall)
    paths.run.mkdir(parents=True, exist_ok=True)
    with protocol.listen(paths.driver_socket) as server:
        log.info("listening at %s", paths.driver_socket)
        while True:
            client, _ = server.accept()
            threading.Thread(target=_serve_client, args=(supervisor, client), daemon=True).start()
