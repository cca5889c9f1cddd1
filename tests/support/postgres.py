"""A PostgreSQL server in a folder of its own, on a unix socket only: Debian's binaries, as the user postgres."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)


def _as_postgres(*command: str) -> None:
    user = pwd.getpwnam("postgres")
    done = subprocess.run(
        command,
        user=user.pw_uid,
        group=user.pw_gid,
        extra_groups=[],
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stdout}{done.stderr}")


@contextmanager
def postgres_server(password: str) -> Iterator[str]:
    """A running server; the answer is the URL of its database, of the user postgres with this password."""
    if BINARIES is None:
        raise RuntimeError("there is no PostgreSQL: run setup/run packages")
    user = pwd.getpwnam("postgres")
    root = Path(tempfile.mkdtemp(prefix="lm-pg-", dir="/tmp"))
    data, secret = root / "data", root / "password"
    try:
        secret.write_text(password)
        secret.chmod(0o600)
        for path in (root, secret):
            os.chown(path, user.pw_uid, user.pw_gid)
        how = ["--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync", "--encoding=UTF8"]
        _as_postgres(f"{BINARIES}/initdb", "-D", f"{data}", *how)
        options = f"-c listen_addresses= -c unix_socket_directories={root} -c fsync=off -c max_connections=40"
        _as_postgres(f"{BINARIES}/pg_ctl", "-D", f"{data}", "-w", "-l", f"{root}/log", "-o", options, "start")
        try:
            yield f"postgresql://postgres@/postgres?host={root}"
        finally:
            _as_postgres(f"{BINARIES}/pg_ctl", "-D", f"{data}", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(root)
