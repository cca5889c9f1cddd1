"""A tgtd of its own for each test: in a network namespace with three client addresses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from livemount.core.run import in_namespace, run
from livemount.core.secrets import new_secret
from livemount.core.settings import HostPaths
from livemount.target.api import Chap, TargetSpec, initiator_iqn, target_iqn
from livemount.target.command import control_socket
from livemount.target.tgt import TgtTarget

PORTAL = "10.99.0.1"
GUEST = "10.99.0.11"
OTHER = "10.99.0.12"


class Bench:
    """A namespace with the portal's address and two guests' addresses, and tgtd in it."""

    def __init__(self, root: Path, namespace: str) -> None:
        self.namespace = namespace
        self.host = HostPaths(root)
        self.host.log.mkdir(parents=True)
        self.tgtd: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start tgtd and wait until it answers."""
        words = [sys.executable, "-m", "livemount.target", "--root", str(self.host.root), "--portal", PORTAL]
        with (self.host.log / "tgtd.log").open("ab") as log:
            self.tgtd = subprocess.Popen([*in_namespace(self.namespace), *words], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while run("tgtadm", "-m", "sys", "-o", "show", env=self.env, check=False).returncode:
            assert time.monotonic() < deadline, (self.host.log / "tgtd.log").read_text()
            assert self.tgtd.poll() is None, (self.host.log / "tgtd.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.tgtd is not None:
            self.tgtd.send_signal(signal.SIGKILL)
            self.tgtd.wait()
            self.tgtd = None

    @property
    def env(self) -> dict[str, str]:
        """The environment of tgtadm."""
        return {**os.environ, "TGT_IPC_SOCKET": str(self.host.target_socket)}

    def target(self) -> TgtTarget:
        """A new client, as after a restart of the host's service."""
        return TgtTarget(self.host.target_socket)

    def spec(self, mount: str, address: str = GUEST, size: int = 8 << 20) -> TargetSpec:
        """A mount's spec with a new backing file."""
        file = self.host.root / f"{mount}.disk"
        with file.open("wb") as disk:
            disk.truncate(size)
        return TargetSpec(
            mount=mount, backing_file=file, initiator_address=address, chap=Chap(user=mount, secret=new_secret())
        )

    def url(self, spec: TargetSpec, secret: str | None = None) -> str:
        """The spec's disk as libiscsi's tools take it."""
        return f"iscsi://{spec.mount}%{secret or spec.chap.secret}@{PORTAL}:3260/{target_iqn(spec.mount)}/1"

    def client(
        self, *words: str, spec: TargetSpec, address: str = GUEST, initiator: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program that logs in from `address` (the route's preferred source)."""
        run("ip", "route", "replace", "local", PORTAL, "dev", "lo", "src", address, "table", "local",
            namespace=self.namespace)  # fmt: skip
        name = initiator or initiator_iqn(spec.mount)
        return run(
            *[name if word == "INITIATOR" else word for word in words],
            namespace=self.namespace,
            check=False,
            timeout=timeout,
        )

    def read_capacity(
        self, spec: TargetSpec, *, address: str = GUEST, secret: str | None = None, initiator: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Log in and ask for the size."""
        return self.client(
            "iscsi-readcapacity16",
            "--initiator-name",
            "INITIATOR",
            self.url(spec, secret),
            spec=spec,
            address=address,
            initiator=initiator,
        )

    def qemu_io(self, spec: TargetSpec, *commands: str) -> subprocess.CompletedProcess[str]:
        """Run qemu-io's commands on the disk."""
        options = (
            f"driver=iscsi,transport=tcp,portal={PORTAL}:3260,target={target_iqn(spec.mount)},lun=1,user={spec.mount},"
            f"password-secret=chap,initiator-name={initiator_iqn(spec.mount)},cache.direct=on,discard=unmap"
        )
        words = [
            "qemu-io",
            "-t",
            "writeback",
            "--object",
            f"secret,id=chap,data={spec.chap.secret}",
            "--image-opts",
            options,
        ]
        for command in commands:
            words += ["-c", command]
        return self.client(*words, spec=spec)

    def is_open(self, file: Path) -> bool:
        """Whether tgtd holds the file open."""
        assert self.tgtd is not None
        links = Path(f"/proc/{self.tgtd.pid}/fd").iterdir()
        return any(os.path.realpath(link) == str(file) for link in links)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A running bench; gone without a trace afterwards."""
    namespace = f"lmt-{os.getpid()}"
    with TemporaryDirectory(prefix="lmt-") as folder:
        run("ip", "netns", "add", namespace)
        try:
            run("ip", "link", "set", "lo", "up", namespace=namespace)
            for address in (PORTAL, GUEST, OTHER):
                run("ip", "address", "add", f"{address}/32", "dev", "lo", namespace=namespace)
            made = Bench(Path(folder), namespace)
            try:
                made.start()
                yield made
            finally:
                made.kill()
        finally:
            run("ip", "netns", "delete", namespace)


__all__ = ["GUEST", "OTHER", "PORTAL", "Bench", "control_socket"]
