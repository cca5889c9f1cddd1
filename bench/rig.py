"""A place to measure in: a network namespace with a tgtd, and a pseudo-disk driver, in one folder, gone at the end.

All files lie in that one folder, so that pseudo-disk and plain file are on the same file system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from livemount._native import unmount
from livemount.core.errors import LivemountError, UnavailableError
from livemount.core.run import in_namespace, run
from livemount.core.settings import HostPaths
from livemount.driver.api import PseudoDiskSpec
from livemount.driver.client import DriverClient

PORTAL = "127.0.0.1"
PATIENCE = 30.0


def wait_for(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    """Poll until a condition is true. Raises `UnavailableError` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.02)


@dataclass(frozen=True)
class Options:
    """What the command line chose."""

    directory: Path
    rounds: int
    seconds: float
    """How long one measurement of a steady load takes."""


class Rig:
    """Use it by `open_rig`."""

    def __init__(self, folder: Path, namespace: str, portal: str = PORTAL) -> None:
        self.folder = folder
        self.namespace = namespace
        self.portal = portal
        self.host = HostPaths(folder / "host")
        self.driver = DriverClient(self.host.driver_socket)
        self.processes: list[subprocess.Popen[bytes]] = []
        self._targets = 0
        self._tids: dict[str, str] = {}

    def start(self, name: str, *words: str, inside: bool = False) -> subprocess.Popen[bytes]:
        """Start a program that runs until the end; its output goes to a log in the rig's folder."""
        command = [*in_namespace(self.namespace), *words] if inside else list(words)
        with (self.folder / f"{name}.log").open("ab") as log:
            # In a session of its own: a signal to the bench's group must leave it to `close` to end things in order.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )
        self.processes.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes], sign: int = signal.SIGTERM) -> None:
        """End a program and wait for it."""
        process.send_signal(sign)
        process.wait(PATIENCE)
        self.processes.remove(process)

    def start_target(self) -> subprocess.Popen[bytes]:
        """Start tgtd as a live-mount host does."""
        root = str(self.host.root)
        tgtd = self.start(
            "tgtd", sys.executable, "-m", "livemount.target", "--root", root, "--portal", self.portal, inside=True
        )
        wait_for(lambda: self._tgtadm("sys", "show", check=False).returncode == 0, "tgtd answers")
        return tgtd

    def start_driver(self) -> subprocess.Popen[bytes]:
        """Start the pseudo-disk service as a live-mount host does."""
        driver = self.start("driver", sys.executable, "-m", "livemount.driver", "--root", str(self.host.root))

        def answers() -> bool:
            with contextlib.suppress(UnavailableError):
                self.driver.states()
                return True
            return False

        wait_for(answers, "the driver answers")
        return driver

    def attach(self, name: str, source: str, password_file: Path | None = None) -> Path:
        """Attach a pseudo-disk; the file that is the disk."""
        spec = PseudoDiskSpec(
            id=name,
            source=source,
            password_file=password_file,
            directory=self.host.mounts / name,
            recall_directory=self.host.recall,
        )
        return self.driver.attach(spec).path

    def export(self, file: Path, *, direct: bool = False) -> str:
        """Export a file with the options `livemount.target.tgt` uses; its URL. No CHAP: it costs nothing after login.

        `direct` opens the file with O_DIRECT: every I/O reaches what is behind the file.
        """
        self._targets += 1
        tid, iqn = str(self._targets), f"iqn.2026-01.internal.livemount:bench{self._targets}"
        self._tgtadm("target", "new", "--tid", tid, "--targetname", iqn)
        flags = ["--bsoflags", "direct"] if direct else []
        lun = ["--tid", tid, "--lun", "1"]
        self._tgtadm(
            "logicalunit", "new", *lun, "--backing-store", str(file), "--bstype", "rdwr", "--blocksize", "512", *flags
        )
        self._tgtadm("logicalunit", "update", *lun, "--params", "thin_provisioning=1,rotation_rate=1")
        self._tgtadm("target", "bind", "--tid", tid, "--initiator-address", self.portal)
        url = f"iscsi://{self.portal}:3260/{iqn}/1"
        self._tids[url] = tid
        return url

    def withdraw(self, url: str) -> None:
        """End the export of a file."""
        self._tgtadm("target", "delete", "--force", "--tid", self._tids.pop(url))

    def _tgtadm(self, mode: str, operation: str, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "TGT_IPC_SOCKET": str(self.host.target_socket)}
        words = ["tgtadm", "--lld", "iscsi", "--mode", mode, "--op", operation, *more]
        return run(*words, env=environment, check=check)

    def close(self) -> None:
        """End everything, the newest first."""
        with contextlib.suppress(LivemountError):
            for state in self.driver.states():
                self.driver.destroy(state.spec.id)
        for process in reversed(self.processes):
            process.kill()  # tgtd does not end by SIGTERM while it has targets
            process.wait()
        inside = f"{self.folder}/"
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        for mount in reversed([line.split()[4] for line in lines]):
            if mount.startswith(inside):
                with contextlib.suppress(OSError):
                    unmount(Path(mount), force=True)


@contextlib.contextmanager
def open_folder(directory: Path) -> Iterator[Path]:
    """A folder below `directory` that is taken away afterwards; everybody may pass through it, as nginx must."""
    with TemporaryDirectory(prefix="lmb-", dir=directory, ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        yield folder


@contextlib.contextmanager
def open_rig(directory: Path) -> Iterator[Rig]:
    """An empty rig below `directory`, taken away afterwards."""
    namespace = f"lmb-{os.getpid()}"
    with open_folder(directory) as folder:
        run("ip", "netns", "add", namespace)
        try:
            run("ip", "link", "set", "lo", "up", namespace=namespace)
            rig = Rig(folder, namespace)
            try:
                yield rig
            finally:
                rig.close()
        finally:
            run("ip", "netns", "delete", namespace)


def need(*programs: str) -> None:
    """Raises `UnavailableError` that names the programs that are missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise UnavailableError(f"this bench needs {', '.join(missing)}", hint="apt-get install the missing peers")
