"""Sources for the contract test: each serves the same small disk with real parts, and can be harmed.

Adding a source to the test is adding a `Subject`, here or as in `foreign_images`, and to `SUBJECTS` in the test.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from livemount.core.secrets import write_secret
from livemount.media import Source, open_source
from livemount.media.registry import SourceUri
from livemount.media.repository import Repository
from livemount.media.sources.borg import BorgImage
from tests.support.suspend import suspend

MIB = 1 << 20
PASSWORD = "correct horse"


def write_disk(path: Path, seed: int = 0) -> Path:
    """10 MiB and a sector, more than any format's largest chunk: noise, text, zeros that are written, holes."""
    with path.open("wb") as file:
        file.truncate(10 * MIB + 512)
        file.write(random.Random(seed).randbytes(2 * MIB + 12345))
        file.write(b"text " * 50_000)
        file.seek(4 * MIB)
        file.write(bytes(256 << 10))
        file.seek(5 * MIB + 4096)
        file.write(random.Random(seed + 1000).randbytes(8192))
        file.seek(10 * MIB)
        file.write(b"the end")
    return path


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def flip(path: Path, offset: int) -> None:
    """Damage a byte of a file, and keep its times as a bad disk would."""
    status = path.stat()
    mode = status.st_mode
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0xFF]))
    path.chmod(mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def cut(path: Path) -> None:
    """Leave the first half of a file, and keep its times."""
    status = path.stat()
    path.chmod(0o600)
    os.truncate(path, status.st_size // 2 // 4096 * 4096)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def age(path: Path, seconds: float) -> None:
    """Make a file as old as one that nobody has just written."""
    then = time.time() - seconds
    os.utime(path, (then, then))


class Subject:
    """A source under test. What a kind cannot do or suffer it does not list in `can`."""

    can: frozenset[str] = frozenset()
    """Of `holes`, `away`, `hang`, `truncated`, `corrupt`, `denied`, `busy`."""
    most_errors = 100
    """How many failed reads do not take long."""
    patience = 0.5
    """Seconds after which a server that says nothing is given up; one that is well answers sooner."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.password: Path | None = None
        self._opened: list[Source] = []
        self.serve(write_disk(folder / "disk.raw"))

    def serve(self, disk: Path) -> None:
        """Make the source from the disk, or from another one in its place."""
        raise NotImplementedError

    @property
    def uri(self) -> str:
        """Names the source."""
        raise NotImplementedError

    @property
    def content(self) -> bytes:
        """What must be read."""
        return (self.folder / "disk.raw").read_bytes()

    def open(self) -> Source:
        """Open the source; it is closed at the end."""
        source = open_source(self.uri, self.password)
        self._opened.append(source)
        return source

    def close_all(self) -> None:
        """Close what was opened, and leave nothing behind."""
        for source in self._opened:
            source.close()
        self.close()

    def serve_another(self) -> None:
        """Have another content under the same name."""
        self.serve(write_disk(self.folder / "disk.raw", seed=7))

    def missing(self) -> str:
        """A URI of something that is not there."""
        raise NotImplementedError

    def stop(self) -> None:
        """Take the source away (`away`)."""

    def start(self) -> None:
        """Bring it back."""

    def hang(self) -> None:
        """Let it not answer (`hang`)."""

    def go_on(self) -> None:
        """Let it answer again."""

    def truncate(self) -> None:
        """Cut what is stored (`truncated`)."""

    def damage(self) -> None:
        """Damage what is stored (`corrupt`)."""

    def be_busy(self, busy: bool) -> None:
        """Let the service say that it has no capacity, or have it again (`busy`)."""
        raise NotImplementedError

    def refused_as_busy(self) -> int:
        """How many requests got that answer."""
        raise NotImplementedError

    def spoil_credentials(self) -> None:
        """Take wrong credentials from now on (`denied`)."""

    def as_elsewhere(self) -> None:
        """Take away what this process does in small for the tests, so that another sees the same."""

    def close(self) -> None:
        """Leave nothing behind."""


class FileSubject(Subject):
    """A raw image."""

    can = frozenset({"holes", "truncated"})

    def serve(self, disk: Path) -> None:
        pass

    @property
    def uri(self) -> str:
        return f"file://{self.folder}/disk.raw"

    def missing(self) -> str:
        return f"file://{self.folder}/missing.raw"

    def truncate(self) -> None:
        cut(self.folder / "disk.raw")


class ResticSubject(Subject):
    """A copy of ours."""

    can = frozenset({"holes", "away", "truncated", "corrupt", "denied"})

    def serve(self, disk: Path) -> None:
        self.password = self.folder / "password"
        if not self.password.exists():
            write_secret(self.password, PASSWORD)
        self._uri = self.backup(disk)

    @property
    def repository(self) -> Path:
        """The repository's folder."""
        return self.folder / "repository"

    def backup(self, disk: Path) -> str:
        """Back up, and say what to open."""
        assert self.password is not None
        made = self.repository.exists()
        repository = (Repository.open if made else Repository.init)(self.repository, self.password)
        return repository.backup(disk, "web01").source

    @property
    def uri(self) -> str:
        return self._uri

    def missing(self) -> str:
        return self._uri.replace("disk0.raw", "disk1.raw").replace("disk.raw", "disk1.raw")

    def stop(self) -> None:
        self.repository.rename(self.folder / "away")

    def start(self) -> None:
        (self.folder / "away").rename(self.repository)

    def _packs(self) -> list[Path]:
        packs = [file for file in (self.repository / "data").rglob("*") if file.is_file()]
        return sorted(packs, key=lambda file: file.stat().st_size)

    def truncate(self) -> None:
        cut(self._packs()[-1])

    def damage(self) -> None:
        flip(self._packs()[-1], 1 * MIB)

    def spoil_credentials(self) -> None:
        assert self.password is not None
        write_secret(self.password, "wrong")


class MadeOnce(NamedTuple):
    """A repository that costs seconds to make, kept until the end of the tests to be copied."""

    folder: Path
    name: str
    keeper: TemporaryDirectory[str]


@cache
def _restic_repository(content: bytes, password: str) -> MadeOnce:
    keeper = TemporaryDirectory(prefix="restic-")
    folder = Path(keeper.name)
    (folder / "disk.raw").write_bytes(content)
    subprocess.run(["fallocate", "--dig-holes", folder / "disk.raw"], check=True)
    restic(folder, password, "init")
    snapshot = restic_snapshot(restic(folder, password, "backup", "--json", "disk.raw"))
    return MadeOnce(folder / "repository", snapshot, keeper)


def restic(folder: Path, password: str, *words: str | Path) -> str:
    """Run restic in a folder on the repository `repository` in it."""
    environment = os.environ | {
        "RESTIC_PASSWORD": password,
        "RESTIC_REPOSITORY": str(folder / "repository"),
        "RESTIC_CACHE_DIR": str(folder / "cache"),
    }
    done = subprocess.run(["restic", *words], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def restic_snapshot(said: str) -> str:
    """The snapshot's id in what `restic backup --json` says."""
    return said.partition('"snapshot_id":"')[2].partition('"')[0]


class ForeignResticSubject(ResticSubject):
    """An image backed up by restic itself, in chunks cut by content."""

    def backup(self, disk: Path) -> str:
        done = _restic_repository(disk.read_bytes(), PASSWORD)
        if self.repository.exists():
            shutil.rmtree(self.repository)
        shutil.copytree(done.folder, self.repository)
        return str(SourceUri("restic", self.repository, {"snapshot": done.name, "file": "/disk.raw"}))


class BorgSubject(Subject):
    """An image in an archive of borg's. It is mounted anew, twice, for each read of a damaged chunk."""

    most_errors = 1

    can = frozenset({"away", "truncated", "corrupt", "denied"})

    def serve(self, disk: Path) -> None:
        self.password = self.folder / "password"
        write_secret(self.password, PASSWORD)
        if self.repository.exists():
            shutil.rmtree(self.repository)
        shutil.copytree(_borg_repository(disk.read_bytes(), PASSWORD).folder, self.repository)

    @property
    def repository(self) -> Path:
        """The repository's folder."""
        return self.folder / "repository"

    @property
    def uri(self) -> str:
        return f"borg://{self.repository}?archive=last%20night&path=disks/disk.raw"

    def missing(self) -> str:
        return self.uri.replace("disk.raw", "missing.raw")

    def stop(self) -> None:
        self.repository.rename(self.folder / "away")
        for source in self._opened:
            os.kill(borg_process(source), signal.SIGKILL)

    def start(self) -> None:
        (self.folder / "away").rename(self.repository)

    def _segments(self) -> list[Path]:
        return sorted((self.repository / "data").rglob("*"), key=lambda file: file.is_file() and file.stat().st_size)

    def truncate(self) -> None:
        cut(self._segments()[-1])

    def damage(self) -> None:
        flip(self._segments()[-1], 1 * MIB)

    def spoil_credentials(self) -> None:
        assert self.password is not None
        write_secret(self.password, "wrong")


@cache
def _borg_repository(content: bytes, password: str) -> MadeOnce:
    keeper = TemporaryDirectory(prefix="borg-")
    folder = Path(keeper.name)
    (folder / "disks").mkdir()
    (folder / "disks/disk.raw").write_bytes(content)
    repository = folder / "repository"
    for words in (["init", "--encryption=repokey", repository], ["create", f"{repository}::last night", "disks"]):
        borg(folder, password, *words)
    return MadeOnce(repository, "last night", keeper)


def borg_process(source: Source) -> int:
    """The borg of a source: the shell that waits for it has no other child."""
    assert isinstance(source, BorgImage)
    assert source._child is not None
    shell = source._child.pid
    (found,) = Path(f"/proc/{shell}/task/{shell}/children").read_text().split()
    return int(found)


def borg(folder: Path, password: str, *words: str | Path) -> str:
    """Run borg in a folder, its own files there, too."""
    environment = os.environ | {
        "BORG_BASE_DIR": str(folder / "base"),
        "BORG_PASSPHRASE": password,
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
    }
    done = subprocess.run(["borg", *words], env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class NbdSubject(Subject):
    """An export of nbdkit over TCP."""

    can = frozenset({"holes", "away", "hang"})
    scheme = "nbd"

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        super().__init__(folder)

    def serve(self, disk: Path) -> None:
        self.stop()
        assert disk == self.folder / "disk.raw"
        self.start()

    @property
    def uri(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/{self.export}?identity=web01" + self.more_options

    export = "web01"
    more_options = ""

    def server_words(self) -> list[str]:
        """Words for nbdkit before the plug-in."""
        return ["--ipaddr", "127.0.0.1", "--port", str(self.port)]

    def missing(self) -> str:
        return self.uri.replace(f"/{self.export}?", "/other?")

    def start(self) -> None:
        disk = self.folder / "disk.raw"
        pid = self.folder / "pid"
        pid.unlink(missing_ok=True)
        words = ["nbdkit", "--foreground", "--exit-with-parent", "--readonly", "--pidfile", str(pid)]
        # The filter gives the disk under one name only.
        tail = ["--filter=exportname", "file", f"file={disk}", f"exportname={self.export}", "exportname-strict=true"]
        self._server = subprocess.Popen([*words, *self.server_words(), *tail], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not (pid.exists() and pid.read_text()):  # written when it listens
            assert self._server.poll() is None, "nbdkit has ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)
            self._server.kill()
            self._server.wait()
            self._server = None

    def hang(self) -> None:
        assert self._server is not None
        suspend(self._server.pid)

    def go_on(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.stop()


class NbdUnixSubject(NbdSubject):
    """An export of nbdkit on a Unix socket."""

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{self.export}?socket={self.folder}/s&identity=web01"

    def server_words(self) -> list[str]:
        (self.folder / "s").unlink(missing_ok=True)
        return ["--unix", str(self.folder / "s")]


class NbdPskSubject(NbdSubject):
    """TLS by a pre-shared key."""

    can = NbdSubject.can | {"denied"}
    scheme = "nbds"

    def server_words(self) -> list[str]:
        if self.password is None:
            self.password = self.folder / "key"
            write_secret(self.password, f"alice:{random.Random(0).randbytes(32).hex()}\n")
            shutil.copy(self.password, self.folder / "server-key")
        return [*super().server_words(), "--tls=require", f"--tls-psk={self.folder}/server-key"]

    def spoil_credentials(self) -> None:
        assert self.password is not None
        write_secret(self.password, f"alice:{random.Random(1).randbytes(32).hex()}\n")


class NbdCertificateSubject(NbdSubject):
    """TLS by certificates of both sides."""

    can = NbdSubject.can | {"denied"}
    scheme = "nbds"

    def server_words(self) -> list[str]:
        for side in ("server", "client"):
            if not (self.folder / side).exists():
                make_certificate(self.folder / "ca", self.folder / side, side)
        return [
            *super().server_words(),
            "--tls=require",
            f"--tls-certificates={self.folder}/server",
            "--tls-verify-peer",
        ]

    @property
    def more_options(self) -> str:  # type: ignore[override]
        return f"&certificates={self.folder}/client"

    def spoil_credentials(self) -> None:
        shutil.rmtree(self.folder / "client")
        make_certificate(self.folder / "another-ca", self.folder / "client", "client")


class HttpSubject(Subject):
    """An object of nginx."""

    can = frozenset({"away", "hang", "truncated"})
    scheme = "http"
    more = ""
    """Directives of the server."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        super().__init__(folder)
        self.start()

    def serve(self, disk: Path) -> None:
        age(disk, 2000 if self._server is None else 1000)

    @property
    def uri(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/disk.raw"

    def missing(self) -> str:
        return self.uri.replace("disk.raw", "missing.raw")

    def start(self) -> None:
        tls = " ssl" if self.scheme == "https" else ""
        configuration = self.folder / "nginx.conf"
        configuration.write_text(f"""
            daemon off; master_process off; pid {self.folder}/pid; error_log {self.folder}/error.log;
            events {{ worker_connections 512; }}
            http {{
                access_log {self.folder}/access.log;
                client_body_temp_path {self.folder}; proxy_temp_path {self.folder}; fastcgi_temp_path {self.folder};
                uwsgi_temp_path {self.folder}; scgi_temp_path {self.folder};
                server {{
                    listen 127.0.0.1:{self.port}{tls} backlog=128; root {self.folder};
                    {self.more.replace("FOLDER", str(self.folder))}
                }}
            }}
        """)
        self._server = subprocess.Popen(["nginx", "-c", configuration, "-e", self.folder / "error.log"])
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            assert self._server.poll() is None, "nginx has ended"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        if self._server is not None:
            self._server.send_signal(signal.SIGCONT)
            self._server.kill()
            self._server.wait()
            self._server = None

    def hang(self) -> None:
        assert self._server is not None
        suspend(self._server.pid)

    def go_on(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def be_busy(self, busy: bool) -> None:
        (self.folder / "busy").touch() if busy else (self.folder / "busy").unlink()

    def refused_as_busy(self) -> int:
        return len(re.findall(r'" (?:503|400) ', (self.folder / "access.log").read_text()))

    def truncate(self) -> None:
        os.truncate(self.folder / "disk.raw", 3 * MIB)
        age(self.folder / "disk.raw", 1500)

    def close(self) -> None:
        self.stop()


class HttpsSubject(HttpSubject):
    """Over TLS by an authority of the test's own, with a password."""

    can = HttpSubject.can | {"denied"}
    scheme = "https"
    more = """
        ssl_certificate FOLDER/server/server-cert.pem; ssl_certificate_key FOLDER/server/server-key.pem;
        auth_basic "disks"; auth_basic_user_file FOLDER/users;
    """

    def start(self) -> None:
        if not (self.folder / "ca").exists():
            make_certificate(self.folder / "ca", self.folder / "server", "server")
            (self.folder / "users").write_text(f"alice:{{PLAIN}}{PASSWORD}\n")
            self.password = self.folder / "password"
            write_secret(self.password, f"alice:{PASSWORD}")
        self._trusted = os.environ.get("SSL_CERT_FILE")
        os.environ["SSL_CERT_FILE"] = str(self.folder / "ca/cert.pem")
        super().start()

    def spoil_credentials(self) -> None:
        assert self.password is not None
        write_secret(self.password, "alice:wrong")

    def close(self) -> None:
        super().close()
        os.environ.pop("SSL_CERT_FILE")
        if self._trusted is not None:
            os.environ["SSL_CERT_FILE"] = self._trusted


def make_certificate(authority: Path, folder: Path, name: str) -> None:
    """A certificate for 127.0.0.1 in the file names of GnuTLS, by an authority that is made when it is not there."""

    def openssl(*words: str | Path) -> None:
        done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    if not authority.exists():
        authority.mkdir()
        files = ("-keyout", authority / "key.pem", "-out", authority / "cert.pem")
        openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=authority", *files)
    folder.mkdir()
    request, key, cert = folder / "request.pem", folder / f"{name}-key.pem", folder / f"{name}-cert.pem"
    extra = folder / "extra"
    extra.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    openssl("req", *curve, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    signed_by = ("-CA", authority / "cert.pem", "-CAkey", authority / "key.pem", "-CAcreateserial")
    openssl("x509", "-req", "-in", request, *signed_by, "-days", "2", "-extfile", extra, "-out", cert)
    key.chmod(0o600)
    shutil.copy(authority / "cert.pem", folder / "ca-cert.pem")
