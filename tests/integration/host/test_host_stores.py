"""A host mounts a copy that is in S3 (moto, a stand-in): to the initiator, beside a prune, and while S3 is away."""

from __future__ import annotations

import random
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from livemount.boot.nginx import NginxBoot
from livemount.core.machine import Firmware
from livemount.guest.prepare import prepare
from livemount.guest.tools import GuestTools
from livemount.host.api import PseudoDiskRequest
from livemount.host.mounts import Mounts
from livemount.host.records import Records
from livemount.media.repository import Repository, Rules
from livemount.target.api import TargetSpec
from tests.integration.driver.conftest import MIB, Host, wait_for
from tests.integration.target.conftest import GUEST, PORTAL, Bench
from tests.support.stores import Servers, Subject

pytestmark = pytest.mark.integration

KIB64 = 64 << 10


def test_a_copy_in_s3_is_mounted_through_the_host(
    host: Host, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVEMOUNT_HOME", str(tmp_path / "home"))
    servers = Servers("s3", tmp_path / "s")
    try:
        mount_and_prune(host, bench, servers.subject(tmp_path), tmp_path)
    finally:
        servers.stop()


def mount_and_prune(host: Host, bench: Bench, subject: Subject, folder: Path) -> None:
    content = b"\xa5" * MIB + random.Random(1).randbytes(3 * MIB) + bytes(MIB)
    disk = folder / "disk.raw"
    disk.write_bytes(content)
    repository = Repository.init(subject.place, subject.password)
    old = repository.backup(disk, "web01")
    mounts = Mounts(
        address=PORTAL,
        records=Records(host.paths.mounts, host.paths.recall),
        driver=host.client,
        target=bench.target(),
        boot=NginxBoot(host.paths),
        prepare=partial(prepare, tools=GuestTools(folder)),
    )
    request = PseudoDiskRequest(
        source=old.source, password_file=subject.password, address=GUEST, firmware=Firmware.BIOS, prepare=False
    )
    assert mounts.put("m1", request).problems == []
    path = host.client.state("m1").path
    spec = TargetSpec(mount="m1", backing_file=path, initiator_address=GUEST, chap=mounts.records.chap("m1"))
    done = bench.qemu_io(spec, "read -P 0xa5 0 64k", "write -P 0x3c 64k 64k", "flush", "read -P 0x3c 64k 64k")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout

    # A newer copy, after which the rules would keep this one no more.
    disk.write_bytes(random.Random(2).randbytes(4 * MIB) + bytes(MIB))
    new = repository.backup(disk, "web01")
    (kept, _) = repository.forget(Rules(keep_last=1))
    assert (kept.copy.id, kept.kept) == (old.id, True)
    assert "the mount m1" in kept.reasons[0]
    for _ in range(2):
        repository.prune(max_unused=0, keep_marked=timedelta(0))
    assert path.read_bytes() == content[:KIB64] + b"\x3c" * KIB64 + content[2 * KIB64 :]

    proxy = subject.proxy
    assert proxy is not None
    proxy.die()
    mounts.delete("m1")
    assert (list(mounts.records.mounts()), host.mounts(), host.processes()) == ([], [], [])
    proxy.revive()
    assert old.id in repository.pins.all()
    host.kill()
    host.start()
    wait_for(lambda: repository.pins.all() == {}, 120)
    repository.forget(Rules(keep_last=1))
    assert repository.copies() == [new]
