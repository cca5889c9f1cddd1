"""restic's own rest-server, on a free port. `setup/run rest_server` builds it."""

from __future__ import annotations

import base64
import hashlib
import socket
import subprocess
import time
from pathlib import Path

from livemount.core.settings import Settings

USER = "backup"
PASSWORD = "hunter2"
START_SECONDS = 60.0


class RestServer:
    """The server of the repositories in `folder`, for `USER` with `PASSWORD`."""

    def __init__(self, folder: Path, *, append_only: bool = False, tls: Path | None = None) -> None:
        program = Settings().cache / "rest-server" / "rest-server"
        assert program.exists(), "rest-server is not installed: run `setup/run rest_server`"
        folder.mkdir(parents=True, exist_ok=True)
        digest = base64.b64encode(hashlib.sha1(PASSWORD.encode(), usedforsecurity=False).digest()).decode()
        (folder / ".htpasswd").write_text(f"{USER}:{{SHA}}{digest}\n")
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self.folder = folder
        words = ["--path", str(folder), "--listen", f"127.0.0.1:{self.port}"]
        words += ["--append-only"] if append_only else []
        if tls is not None:
            words += ["--tls", "--tls-cert", str(tls / "server-cert.pem"), "--tls-key", str(tls / "server-key.pem")]
        self._process = subprocess.Popen(
            [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError("rest-server does not answer")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it; what it holds stays in the folder."""
        self._process.kill()
        self._process.wait()
