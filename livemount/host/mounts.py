"""Puts the parts of a mount together on its host, in order, and takes them away again.

Concurrency: one lock a mount, so that a request and the watch never work on the same mount at once; one lock for the
table of records, so that no two mounts get one address. Crash contract: see `records`; `put` of the same request
finishes (or begins anew) what a killed service left half made, `delete` takes away whatever is there.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shutil import disk_usage
from socket import gethostname

from livemount.boot.api import UP_PATH, BootScript, BootServer
from livemount.core.errors import (
    ConflictError,
    LivemountError,
    NoSpaceError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from livemount.core.machine import is_name
from livemount.driver.api import PseudoDiskDriver, PseudoDiskState
from livemount.guest.api import GuestReport, GuestRequest
from livemount.host.api import EventKind, ExportedDisk, Inspection, InspectionRequest, PseudoDisk, PseudoDiskRequest
from livemount.host.events import EventLog
from livemount.host.records import Record, Records
from livemount.target.api import LUN, Session, Target, TargetSpec, initiator_iqn, target_iqn

log = logging.getLogger(__name__)

NOWHERE = "0.0.0.0"  # noqa: S104 (nothing listens there)
"""The address of what no guest reaches."""
FULL = 1 << 20
"""Bytes of a file system on which a guest could not be prepared; less is no space."""

Prepare = Callable[[Path, GuestRequest], GuestReport]
"""Guest preparation of a disk's file."""


class Mounts:
    """All mounts of this host."""

    def __init__(
        self,
        *,
        address: str,
        records: Records,
        driver: PseudoDiskDriver,
        target: Target,
        boot: BootServer,
        prepare: Prepare,
    ) -> None:
        """`address` is the host's own address on the guests' network: iSCSI portal and boot server."""
        self.address = address
        self.events = EventLog()
        self.records = records
        self.driver = driver
        self.target = target
        self.boot = boot
        self._prepare = prepare
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._table = threading.Lock()
        for mount in list(records.mounts()):
            record = records.read(mount)
            if record is None or not record.inspection:
                self.events.open(mount, records.folder(mount))

    def lock(self, mount: str) -> threading.Lock:
        """The lock to hold while something of the mount is made, repaired or deleted."""
        with self._table:
            return self._locks[mount]

    def put(self, mount: str, request: PseudoDiskRequest) -> PseudoDisk:
        """Bring a mount up on this host. Raises what its parts raise; a failed mount leaves nothing behind."""
        if not is_name(mount):
            raise UsageError(
                f"{mount!r} cannot name a mount",
                hint="1 to 40 lower-case letters, digits and hyphens, none at the ends",
            )
        with self.lock(mount):
            record = self._admit(mount, request)
            try:
                self._pin(mount, request, f"the mount {mount}")
                if not record.prepared:
                    record = self._prepare_disk(mount, record)
                self._export(mount, record)
            except BaseException:
                log.exception("mount %s: failed, taking it away", mount)
                # What cannot be taken away now keeps its record, for a later delete. The cause is what counts here.
                with contextlib.suppress(LivemountError):
                    self._remove(mount)
                raise
        return self.get(mount)

    def _admit(self, mount: str, request: PseudoDiskRequest) -> Record:
        """Check the request against what is there and write its record. Nothing is changed by a refusal."""
        with self._table:
            known = self.records.read(mount)
            if known is not None:
                if known.request != request:
                    raise ConflictError(
                        f"the mount {mount} exists already with another request",
                        hint="unmount it first, or use another name",
                    )
                self.events.open(mount, self.records.folder(mount))
                return known
            for other in self.records.mounts():
                taken = self.records.read(other)
                if taken is not None and taken.request.address == request.address:
                    raise ConflictError(
                        f"the address {request.address} is taken by the mount {other}", hint=f"unmount {other} first"
                    )
            record = Record(request=request, created=datetime.now(UTC))
            self.records.write(mount, record)
            self.events.open(mount, self.records.folder(mount))
            return record

    def _pin(self, mount: str, request: PseudoDiskRequest, whose: str) -> None:
        for source, holder in self.records.pins(mount, request):
            self.driver.pin(source, holder, f"{whose} on {gethostname()}", request.password_file)

    def _prepare_disk(self, mount: str, record: Record) -> Record:
        # A killed service may have left a half-prepared guest in the private store: begin with an empty one.
        specs = self.records.disk_specs(mount, record.request)
        for spec in specs:
            self.driver.destroy(spec.id)
        disks = [self.driver.attach(spec) for spec in specs]
        for attached in disks:
            size = f"{attached.stats.size / 2**30:.1f} GiB"
            self.events.add(mount, EventKind.STORES_READY, f"pseudo-disk of {size} attached")
        disk = disks[record.request.boot]
        report = None
        if record.request.prepare:
            try:
                report = self._prepare(disk.path, self._guest_request(record.request, disks))
            except LivemountError as error:
                # Its writes end in the page cache: that they found no space later is only an I/O error to it.
                self._check_space(mount, error)
                raise
            self.events.add(
                mount,
                EventKind.GUEST_PREPARED,
                f"{report.system}: {len(report.changes)} changes in {report.seconds:.1f} s",
            )
        for spec in specs:
            self.driver.flush(spec.id)
        ready = record.model_copy(update={"prepared": True, "report": report})
        self.records.write(mount, ready)
        return ready

    def _guest_request(self, request: PseudoDiskRequest, disks: Sequence[PseudoDiskState]) -> GuestRequest:
        return GuestRequest(
            firmware=request.firmware,
            up_url=f"http://{self.address}{UP_PATH}",
            other_disks=tuple(disk.path for number, disk in enumerate(disks) if number != request.boot),
        )

    def inspect(self, request: InspectionRequest) -> Inspection:
        """Prepare a guest as a mount would, and throw that away. Raises what its parts raise, but for a refusal."""
        name = f"inspect-{secrets.token_hex(4)}"
        asked = PseudoDiskRequest(**dict(request), address=NOWHERE)
        with self.lock(name):
            # Written first, as a mount's is: whatever a killed service leaves can be taken away by it.
            self.records.write(name, Record(request=asked, created=datetime.now(UTC), inspection=True))
            try:
                self._pin(name, asked, "an inspection")
                return self._inspect(name, asked)
            finally:
                self._remove(name)
                with self._table:
                    self._locks.pop(name, None)

    def _inspect(self, name: str, asked: PseudoDiskRequest) -> Inspection:
        specs = self.records.disk_specs(name, asked)
        disks = [self.driver.attach(spec) for spec in specs]
        disk = disks[asked.boot]
        report, refusal = None, None
        try:
            report = self._prepare(disk.path, self._guest_request(asked, disks))
        except UnsupportedError as error:
            refusal = error
        except LivemountError as error:
            self._check_space(name, error)
            raise
        return Inspection(
            bootable=refusal is None,
            reason=refusal.message if refusal else "",
            hint=refusal.hint if refusal else None,
            report=report,
            recalled=sum(self.driver.state(spec.id).stats.recalled_bytes for spec in specs),
            size=disk.stats.size,
        )

    def _check_space(self, mount: str, cause: Exception) -> None:
        """Raise `NoSpaceError` when the file system of the private stores is full."""
        folder = self.records.folder(mount)
        if disk_usage(folder).free < FULL:
            raise NoSpaceError(
                f"no space for the private store of {mount} in {folder}", hint="make room there, then mount again"
            ) from cause

    def _export(self, mount: str, record: Record) -> None:
        """Make target and boot script, where they are not there."""
        files = [self.driver.attach(spec).path for spec in self.records.disk_specs(mount, record.request)]
        chap = self.records.chap(mount)
        address = record.request.address
        if not self.target.exists(mount):
            self.target.create(
                TargetSpec(
                    mount=mount,
                    backing_file=files[0],
                    further_files=tuple(files[1:]),
                    initiator_address=address,
                    chap=chap,
                ),
            )
            self.events.add(mount, EventKind.TARGET_READY, f"target {target_iqn(mount)} for {address} only")
        if not self.target.sessions(mount):
            self.publish(mount, record)

    def publish(self, mount: str, record: Record) -> None:
        """Let the boot server answer the mount's address with its script."""
        address = record.request.address
        if address in self.boot.published():
            return
        self.boot.publish(
            BootScript(
                mount=mount,
                address=address,
                portal=self.address,
                target_iqn=target_iqn(mount),
                initiator_iqn=initiator_iqn(mount),
                chap=self.records.chap(mount),
                firmware=record.request.firmware,
                lun=LUN + record.request.boot,
            )
        )
        self.events.add(mount, EventKind.SCRIPT_PUBLISHED, f"boot script for {address} only")

    def repair(self, mount: str) -> None:
        """Bring back what died of a mount (a killed target, say). The caller holds the mount's lock."""
        record = self.records.read(mount)
        if record is None or not record.prepared:
            return
        self._export(mount, record)
        self.events.add(mount, EventKind.REPAIRED, "target brought back")

    def get(self, mount: str) -> PseudoDisk:
        """The mount as it is now. Raises `NotFoundError`."""
        record = self.records.read(mount) if is_name(mount) else None
        if record is None:
            raise NotFoundError(f"there is no mount {mount!r} on this host")
        return self._state(mount, record)

    def _state(self, mount: str, record: Record) -> PseudoDisk:
        problems: list[str] = []
        sessions: list[Session] = []
        try:
            states = [self.driver.state(spec.id) for spec in self.records.disk_specs(mount, record.request)]
        except NotFoundError as error:
            # Without its disk there is nothing to serve: for a client the mount is not there.
            raise NotFoundError(f"the pseudo-disk of the mount {mount!r} is not attached") from error
        disk = states[record.request.boot]
        if not record.prepared:
            problems.append("not prepared yet")
        try:
            sessions = self.target.sessions(mount)
            if not self.target.exists(mount):
                problems.append("its target is missing")
        except LivemountError as error:
            problems.append(str(error))
        return PseudoDisk(
            mount=mount,
            request=record.request,
            portal=f"{self.address}:3260",
            target_iqn=target_iqn(mount),
            initiator_iqn=initiator_iqn(mount),
            size=disk.stats.size,
            stats=disk.stats,
            disks=tuple(
                ExportedDisk(lun=lun, source=state.spec.source, stats=state.stats)
                for lun, state in enumerate(states, start=LUN)
            ),
            report=record.report,
            sessions=sessions,
            healthy=not problems,
            problems=problems,
        )

    def clear(self) -> None:
        """Take away the inspections of a service that was killed. To be called before any is made."""
        for name in list(self.records.mounts()):
            record = self.records.read(name)
            if record is not None and record.inspection:
                log.warning("%s: was not finished, taking it away", name)
                with contextlib.suppress(LivemountError):
                    self._remove(name)

    def list(self) -> list[PseudoDisk]:
        """All mounts that are up."""
        found = []
        for mount in self.records.mounts():
            record = self.records.read(mount)
            if record is None or record.inspection:
                continue
            try:
                found.append(self._state(mount, record))
            except NotFoundError:
                log.warning("mount %s has a record but no pseudo-disk", mount)
        return found

    def delete(self, mount: str) -> None:
        """Take the mount away from this host; nothing happens when it is not there."""
        if not is_name(mount):
            return
        with self.lock(mount):
            self._remove(mount)

    def _remove(self, mount: str) -> None:
        """Script, target, disk, stores, pin, record: in this order; every part is tried, the first error is raised."""
        record = self.records.read(mount)
        errors: list[Exception] = []
        steps: list[Callable[[], None]] = [lambda: self.target.delete(mount)]
        if record is None:
            steps.append(lambda: self.driver.destroy(mount))
        else:
            steps.insert(0, lambda: self.boot.withdraw(record.request.address))
            steps += [partial(self.driver.destroy, spec.id) for spec in self.records.disk_specs(mount, record.request)]
            steps += [
                partial(self.driver.unpin, source, holder, record.request.password_file)
                for source, holder in self.records.pins(mount, record.request)
            ]
        for step in steps:
            try:
                step()
            except Exception as error:
                log.exception("mount %s: a part could not be taken away", mount)
                errors.append(error)
        if errors:
            raise errors[0]
        self.events.close(mount)
        self.records.delete(mount)
