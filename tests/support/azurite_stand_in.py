"""Azurite, a stand-in for Azure Blob Storage, on a free port. `setup/run azurite` installs it."""

from __future__ import annotations

import base64
import hmac
import signal
import socket
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from livemount.core.settings import Settings
from tests.support.suspend import suspend

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, the same everywhere."""
START_SECONDS = 60.0


class AzuriteStandIn:
    """The server. Blobs lie in `folder`, and are there again when it was stopped and started."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = Settings().cache / "azurite" / "node_modules" / ".bin" / "azurite-blob"
        assert program.exists(), "Azurite is not installed: run `setup/run azurite`"
        self.folder.mkdir(parents=True, exist_ok=True)
        words = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(self.folder)]
        words += ["--silent", "--skipApiVersionCheck", "--disableProductStyleUrl", "--disableTelemetry"]
        self._process = subprocess.Popen(
            [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError("Azurite does not answer")
            time.sleep(0.05)

    def signature(self, permissions: str = "rl", seconds: float = 3600) -> str:
        """A shared access signature of the whole account, `sv=...&sig=...`, for so long."""
        expiry = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        given = {"sv": "2019-12-12", "ss": "b", "srt": "sco", "sp": permissions, "se": expiry}
        parts = (ACCOUNT, permissions, "b", "sco", "", expiry, "", "", given["sv"], "")
        digest = hmac.digest(base64.b64decode(KEY), "\n".join(parts).encode(), "sha256")
        return urlencode({**given, "sig": base64.b64encode(digest).decode()})

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def hang(self) -> None:
        """Take connections and say nothing, until `go_on`."""
        assert self._process is not None
        suspend(self._process.pid)

    def go_on(self) -> None:
        """Answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it; what it holds stays in the folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
