"""A file system of the tests in a process of its own, and how it is told what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

from livemount._native import unmount


class MountedFs:
    """`python -m MODULE MOUNT_POINT ARGUMENT...`, which says `mounted` when it is; gone at the end of a `with`."""

    def __init__(self, module: str, mount_point: Path, *arguments: Path) -> None:
        mount_point.mkdir()
        self.path = mount_point
        self._server = subprocess.Popen(
            [sys.executable, "-m", module, str(mount_point), *map(str, arguments)], stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        with self._server.stdout as said:
            if said.readline() != b"mounted\n":
                raise OSError(f"{module} did not start")
        self._control = os.open(mount_point / ".control", os.O_WRONLY)

    def order(self, *words: object) -> None:
        """Write to its `.control`, in order with what goes on."""
        os.pwrite(self._control, " ".join(map(str, words)).encode(), 0)

    def close(self) -> None:
        """Unmount."""
        if self._server.poll() is None:
            os.close(self._control)
            unmount(self.path, force=True)
            self._server.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
