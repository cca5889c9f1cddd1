"""A pseudo-disk service of its own for each test, with a source, and nothing left behind whatever happens."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from livemount._native import unmount
from livemount.core.errors import UnavailableError
from livemount.core.settings import HostPaths
from livemount.driver import protocol
from livemount.driver.api import PseudoDiskSpec
from livemount.driver.client import DriverClient
from livemount.driver.layout import DiskFiles

MIB = 1 << 20


def make_source(path: Path, size: int = 48 * MIB) -> bytes:
    """A raw image, every other MiB a hole."""
    parts = [random.Random(at).randbytes(MIB) if at // MIB % 2 else bytes(MIB) for at in range(0, size, MIB)]
    with path.open("wb") as file:
        for number, part in enumerate(parts):
            if number % 2:
                file.seek(number * MIB)
                file.write(part)
        file.truncate(size)
    return b"".join(parts)


def wait_for(condition: Callable[[], object], timeout: float = 60) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


class Host:
    """A host root with a running driver service."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = HostPaths(root)
        self.client = DriverClient(self.paths.driver_socket)
        self.process: subprocess.Popen[bytes] | None = None
        self.options: tuple[str, ...] = ()
        """More words of the service's command line."""

    def start(self) -> None:
        """Start the service and wait until it answers."""
        with (self.root / "driver.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "livemount.driver", "--root", str(self.root), *self.options],
                stdout=log,
                stderr=log,
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.root / "driver.log").read_text()
        try:
            self.client.states()
        except UnavailableError:
            return False
        return True

    def kill(self) -> None:
        """Kill the service, not the workers."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def spec(self, id: str, source: Path, **changes: object) -> PseudoDiskSpec:
        """A disk of this host."""
        fields = {"directory": self.paths.mounts / id, "recall_directory": self.paths.recall, **changes}
        return PseudoDiskSpec.model_validate({"id": id, "source": f"file://{source}", **fields})

    def worker(self, id: str, directory: Path | None = None) -> int:
        """The process id of a disk's worker."""
        files = DiskFiles(directory or self.paths.mounts / id)
        return int(protocol.call(files.control, {"call": "descriptor"}, timeout=60))

    def kill_worker(self, id: str, directory: Path | None = None) -> None:
        """Kill a disk's worker once it runs."""
        found: list[int] = []

        def find() -> bool:
            with contextlib.suppress(UnavailableError):
                found.append(self.worker(id, directory))
            return bool(found)

        wait_for(find)
        with contextlib.suppress(ProcessLookupError):
            os.kill(found[0], signal.SIGKILL)

    def mounts(self) -> list[Path]:
        """What is mounted below the root."""
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return [Path(line.split()[4]) for line in lines if line.split()[4].startswith(f"{self.root}/")]

    def processes(self) -> list[int]:
        """Workers that have a file below the root open."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes()
                if b"livemount.driver.worker" in command and any(
                    str(link.readlink()).startswith(f"{self.root}/") for link in (folder / "fd").iterdir()
                ):
                    found.append(int(folder.name))
        return found

    def clean(self) -> None:
        """End everything of this host."""
        self.kill()
        processes = self.processes()
        # Disks of a test may lie beside the host, on a file system of their own.
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        beside = [Path(line.split()[4]) for line in lines if line.split()[4].startswith(f"{self.root.parent}/")]
        for mount in reversed([mount for mount in beside if mount.name == "disk"]):
            with contextlib.suppress(OSError):
                unmount(mount, force=True)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with a running service."""
    root = tmp_path / "host"
    root.mkdir()
    host = Host(root)
    try:
        host.start()
        yield host
    finally:
        host.clean()
