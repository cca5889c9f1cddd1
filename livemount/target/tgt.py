"""The iSCSI target of tgt: one tgtd a host, one target a mount, one LUN a disk.

tgtd keeps nothing on disk. After it was restarted, `create` with the recorded specs brings the targets back, and
initiators that kept trying log in again. `create` and `delete` may be killed at any point and called again: the
initiator is let in last, when CHAP is bound, and shut out first.

Who may log in: the mount's initiator name AND the mount's CHAP account. tgt lets in an initiator that matches its
address list OR its name list (usr/iscsi/iscsid.c: `ip_acl() && iqn_acl()` refuses), so it can hold only one of them to
account; the host's watch closes sessions that come from another address (`sessions` tells it).

The write cache is on (mode page 8, WCE) as long as bs_rdwr is used: SYNCHRONIZE CACHE and FUA are answered after
fdatasync of the backing file (usr/bs_rdwr.c); `bs-type aio` would ignore both.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import threading
import time
from pathlib import Path

from livemount.core.errors import ConflictError, LivemountError, NotFoundError, UsageError
from livemount.core.machine import is_name
from livemount.target.api import IQN_PREFIX, LUN, Session, TargetSpec, initiator_iqn, target_iqn
from livemount.target.command import control_socket
from livemount.target.protocol import (
    ActiveError,
    Mode,
    NoSuchThingError,
    Operation,
    TakenError,
    TgtError,
    handshake,
    request,
)
from livemount.target.show import ShownTarget, parse_targets

log = logging.getLogger(__name__)

CLOSE_DEADLINE = 60.0
"""Seconds until sessions must be closed and commands in flight answered."""
POLL = 0.02
TID_LIMIT = 1 << 16


class TgtTarget:
    """Implements `livemount.target.api.Target`. Safe to use from many threads; one instance a host."""

    def __init__(self, socket: Path) -> None:
        """`socket` is the value of `TGT_IPC_SOCKET` (`HostPaths.target_socket`)."""
        self._control = control_socket(socket)
        self._lock = threading.Lock()
        self._made: dict[str, TargetSpec] = {}
        self._greeted = False

    def create(self, spec: TargetSpec) -> None:
        """Export the files. A target of the mount that differs (or is half made) is made anew.

        Raises `NotFoundError` when the backing file is not there, `UnavailableError` when tgtd is not.
        """
        _check(spec)
        with self._lock:
            if not self._greeted:
                handshake(self._control)
                self._greeted = True
            shown = self._find(spec.mount)
            if shown is not None and _matches(shown, spec):
                if self._made.get(spec.mount) != spec:  # tgtd does not tell the secret: it may differ
                    self._bind(shown.tid, spec)
            else:
                if shown is not None:
                    self._delete(shown)
                tid = self._new_target(spec)
                for lun, file in spec.luns.items():
                    self._new_lun(tid, spec, lun, file)
                self._bind(tid, spec)
            self._made[spec.mount] = spec

    def delete(self, mount: str) -> None:
        """Close its sessions and take the target away; returns when the backing files are closed.

        Raises `ConflictError` when a command in flight is not answered within a minute.
        """
        with self._lock:
            self._made.pop(mount, None)
            shown = self._find(mount)
            if shown is not None:
                self._delete(shown)
            self._delete_account(mount)

    def exists(self, mount: str) -> bool:
        """Whether the target is there with its LUNs online."""
        shown = self._find(mount)
        if shown is None or not shown.acl:
            return False
        made = self._made.get(mount)
        wanted = [LUN] if made is None else list(made.luns)
        return all(lun in shown.luns and shown.luns[lun].usable for lun in wanted)

    def sessions(self, mount: str) -> list[Session]:
        """Who is logged in; empty when there is no such target."""
        shown = self._find(mount)
        if shown is None:
            return []
        return [Session(initiator=nexus.initiator, address=nexus.address) for nexus in shown.nexuses]

    def disconnect(self, mount: str) -> None:
        """Close its sessions and leave the target: an initiator that is alive logs in again by itself."""
        with self._lock:
            shown = self._find(mount)
            if shown is not None:
                self._close_sessions(shown)

    def mounts(self) -> list[str]:
        """The mounts that have a target here."""
        prefix = f"{IQN_PREFIX}:"
        return sorted(shown.iqn.removeprefix(prefix) for shown in self._show() if shown.iqn.startswith(prefix))

    def _show(self) -> list[ShownTarget]:
        return parse_targets(request(self._control, Mode.TARGET, Operation.SHOW))

    def _find(self, mount: str) -> ShownTarget | None:
        iqn = target_iqn(mount)
        return next((shown for shown in self._show() if shown.iqn == iqn), None)

    def _new_target(self, spec: TargetSpec) -> int:
        iqn = target_iqn(spec.mount)
        taken = {shown.tid for shown in self._show()}
        for tid in range(1, TID_LIMIT):
            if tid in taken:
                continue
            try:
                request(self._control, Mode.TARGET, Operation.NEW, tid=tid, parameters={"targetname": iqn})
            except TakenError:
                if self._find(spec.mount) is not None:
                    raise
                continue  # another process took the number
            return tid
        raise ConflictError("tgtd has no target number left", hint="unmount some of the mounts")

    def _new_lun(self, tid: int, spec: TargetSpec, lun: int, file: Path) -> None:
        parameters = {"path": str(file), "bstype": "rdwr", "blocksize": "512"}
        try:
            request(self._control, Mode.DEVICE, Operation.NEW, tid=tid, lun=lun, parameters=parameters)
        except TgtError as error:
            raise LivemountError(
                f"tgtd cannot serve {file}: {error.message}", hint="is the pseudo-disk mounted?"
            ) from error
        name = spec.mount if lun == LUN else f"{spec.mount}.{lun}"
        identity = hashlib.sha256(name.encode()).hexdigest()[:16]
        attributes = {
            # The disk must keep its identity when tgtd is restarted and numbers its targets differently.
            "scsi_id": identity,
            "scsi_sn": identity,
            "vendor_id": "LIVEMNT",
            "product_id": "pseudo-disk",
            "thin_provisioning": "1",
            "rotation_rate": "1",
        }
        request(self._control, Mode.DEVICE, Operation.UPDATE, tid=tid, lun=lun, parameters=attributes)

    def _bind(self, tid: int, spec: TargetSpec) -> None:
        """Bind the CHAP account, then let the initiator in. Sessions that are open stay."""
        initiator = initiator_iqn(spec.mount)
        self._close_acl(tid, [initiator])
        self._delete_account(spec.mount)
        account = {"user": spec.chap.user, "password": spec.chap.secret}
        request(self._control, Mode.ACCOUNT, Operation.NEW, parameters=account)
        request(self._control, Mode.ACCOUNT, Operation.BIND, tid=tid, parameters={"user": spec.chap.user})
        name = {"initiator-name": initiator}
        request(self._control, Mode.TARGET, Operation.BIND, tid=tid, parameters=name)

    def _close_acl(self, tid: int, entries: list[str]) -> None:
        for entry in entries:
            key = "initiator-name" if entry.startswith("iqn.") else "initiator-address"
            try:
                request(self._control, Mode.TARGET, Operation.UNBIND, tid=tid, parameters={key: entry})
            except LivemountError as error:
                log.debug("target %d: %s was not let in: %s", tid, entry, error)

    def _delete_account(self, user: str) -> None:
        try:
            request(self._control, Mode.ACCOUNT, Operation.DELETE, parameters={"user": user})
        except NoSuchThingError:
            return

    def _delete(self, shown: ShownTarget) -> None:
        # Never tgtd's own `force`: it ends the whole tgtd when a session has commands in flight
        # (usr/iscsi/target.c: "bug still have sessions").
        self._close_acl(shown.tid, shown.acl)
        deadline = time.monotonic() + CLOSE_DEADLINE
        while not self._try_delete(shown):
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"{shown.iqn} is still in use after {CLOSE_DEADLINE:.0f} s: a read or write is not answered",
                    hint="is the pseudo-disk's driver alive and its source reachable?",
                )
            time.sleep(POLL)

    def _try_delete(self, shown: ShownTarget) -> bool:
        """One attempt; false when sessions or commands are still there."""
        now = next((other for other in self._show() if other.iqn == shown.iqn), None)
        if now is None:
            return True
        try:
            self._close_sessions(now)
            if now.nexuses:
                return False
            for lun in sorted(now.luns, reverse=True):
                if lun:  # LUN 0 is the controller and goes with its target
                    request(self._control, Mode.DEVICE, Operation.DELETE, tid=now.tid, lun=lun)
            request(self._control, Mode.TARGET, Operation.DELETE, tid=now.tid)
        except ActiveError:
            return False
        return True

    def _close_sessions(self, shown: ShownTarget) -> None:
        for nexus in shown.nexuses:
            for cid in nexus.connections:
                self._close_connection(shown.tid, nexus.sid, cid)

    def _close_connection(self, tid: int, sid: int, cid: int) -> None:
        try:
            request(self._control, Mode.CONNECTION, Operation.DELETE, tid=tid, sid=sid, cid=cid)
        except NoSuchThingError:
            return


def _check(spec: TargetSpec) -> None:
    if not is_name(spec.mount) or spec.chap.user != spec.mount:
        raise UsageError(f"{spec.mount!r} cannot name a target, or its CHAP user {spec.chap.user!r} is another one")
    if not spec.chap.secret.isalnum() or not 12 <= len(spec.chap.secret) <= 255:
        raise UsageError(f"the CHAP secret of {spec.mount} is not 12 to 255 letters and digits")
    try:
        ipaddress.ip_address(spec.initiator_address)
    except ValueError as error:
        raise UsageError(f"the initiator address {spec.initiator_address!r} is not an IP address") from error
    for file in spec.luns.values():
        if not file.is_absolute():
            raise UsageError(f"the backing file {file} is not an absolute path")
        if not file.is_file():
            raise NotFoundError(f"the backing file {file} does not exist", hint="is the pseudo-disk mounted?")
        if not os.access(file, os.W_OK):
            raise UsageError(f"the backing file {file} cannot be written to")


def _matches(shown: ShownTarget, spec: TargetSpec) -> bool:
    return (
        set(shown.luns) == {0, *spec.luns}
        and all(shown.luns[lun].usable and shown.luns[lun].path == str(file) for lun, file in spec.luns.items())
        and shown.accounts == [spec.chap.user]
        and shown.acl == [initiator_iqn(spec.mount)]
    )
