"""OpenSSH's server on a free port of this machine, with keys of its own, for SFTP only."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

START_SECONDS = 60.0
PRIVILEGE_SEPARATION = Path("/run/sshd")
"""Its service makes it when it starts; it is empty."""
CONFIGURATION = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host-key
AuthorizedKeysFile {folder}/user-key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""


class Sshd:
    """The server. Whoever has the key of `user_key` is let in; `known_hosts` has the server's."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        self.user_key = folder / "user-key"
        self.stranger_key = folder / "stranger-key"
        """A key that opens nothing."""
        for name in ("host-key", "user-key", "stranger-key"):
            if not (folder / name).exists():
                words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(folder / name)]
                subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self._host_key = (folder / "host-key.pub").read_text()
        self.known_hosts = folder / "known-hosts"
        self.knows(self.port)
        configuration = folder / "sshd_config"
        configuration.write_text(CONFIGURATION.format(port=self.port, folder=folder))
        self._process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError("sshd does not answer")
            time.sleep(0.02)

    def knows(self, *ports: int) -> None:
        """Let `known_hosts` name the server at these ports, as those of a proxy."""
        key = " ".join(self._host_key.split()[:2])
        self.known_hosts.write_text("".join(f"[127.0.0.1]:{port} {key}\n" for port in ports))

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End it; sessions end with their clients."""
        self._process.kill()
        self._process.wait()
