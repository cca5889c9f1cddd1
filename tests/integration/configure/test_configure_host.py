"""The roles, run for real through ansible-runner, with stand-ins for the programs that the services start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from livemount.configure import api
from livemount.configure.api import SERVICES, HostSpec, check, configure, problems, remove, restart, service_pids
from livemount.core.errors import LivemountError, UsageError
from livemount.core.run import run
from livemount.core.secrets import secret_file

pytestmark = pytest.mark.integration

# Takes the place of `python -m livemount.X --root ROOT ...`. The API answers its health, the driver has a worker that
# outlives it, as the real one does, the rest only live.
STAND_IN = """\
import http.server, os, pathlib, signal, socketserver, subprocess, sys, time
module, arguments = sys.argv[2], dict(zip(sys.argv[3::2], sys.argv[4::2]))
if module == "livemount.target":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as tgtd does
if module == "livemount.boot":
    # The first process of a PID namespace is ended by no signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
if module == "livemount.driver":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
if module != "livemount.host":
    if os.path.exists(f"{os.environ['STAND_IN_BREAKS']}/{module}"):
        sys.exit(f"{module} has no luck today")
    while True:
        time.sleep(600)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"ok": true, "version": "stand-in", "problems": []}')
    def address_string(self):
        return "client"

path = pathlib.Path(arguments["--root"], "run", "api.sock")
path.unlink(missing_ok=True)
socketserver.UnixStreamServer(str(path), Handler).serve_forever()
"""


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def processes(root: Path) -> list[int]:
    """The processes that were started for the services below `root`."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"LIVEMOUNT_SERVICE={root}:".encode() in environ.read_bytes():
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def worker_of(host: HostSpec) -> int:
    """The worker that the driver's stand-in has started, once it has."""
    found: list[int] = []

    def seek() -> bool:
        for pid in processes(host.host.root):
            with suppress(OSError):
                if "import time; time.sleep(600)" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
        return bool(found)

    wait_for(seek)
    return found[0]


@contextmanager
def new_host(folder: Path) -> Iterator[HostSpec]:
    """A spec in a namespace of its own; what it has become is taken away at the end."""
    name = f"c{uuid.uuid4().hex[:6]}"
    namespace = f"lm-{name}-host"
    run("ip", "netns", "add", namespace)
    python = folder / "python"
    (folder / "stand_in.py").write_text(STAND_IN)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {folder}/stand_in.py "$@"\n')
    python.chmod(0o755)
    made = HostSpec(
        environment=name,
        home=folder,
        namespace=namespace,
        address="10.77.0.2",
        token_file=secret_file(folder / name / "secrets" / "api-token"),
        guest_tools=folder,
        python=python,
        variables={"STAND_IN_BREAKS": str(folder)},
        recall_quota="25%",
        keep_recall_stores=True,
    )
    try:
        yield made
    finally:
        remove(made)
        run("ip", "netns", "delete", namespace)


@pytest.fixture
def spec() -> Iterator[HostSpec]:
    """A host that is not configured yet; its folder's path is short, as sockets lie below it."""
    with TemporaryDirectory(prefix="lmc-") as folder, new_host(Path(folder)) as made:
        yield made


@pytest.fixture(scope="module")
def host() -> Iterator[HostSpec]:
    """A configured host for all tests that leave it configured."""
    with TemporaryDirectory(prefix="lmc-") as folder, new_host(Path(folder)) as made:
        assert not check(made)
        configure(made)
        yield made


def test_services_run_and_a_second_run_changes_nothing(host: HostSpec) -> None:
    api.wait_ready(host)
    before = service_pids(host)
    assert set(before) == set(SERVICES)
    words = Path(f"/proc/{before['driver']}/cmdline").read_text().rstrip("\0").split("\0")
    assert words[-5:] == ["--root", str(host.host.root), "--recall-quota", "25%", "--keep-recall-stores"]
    assert api._play(host, "site.yml") == 0
    assert service_pids(host) == before
    assert (host.host.root / "run").stat().st_mode & 0o777 == 0o711
    assert host.host.mounts.stat().st_mode & 0o777 == 0o700
    assert "changed=0" in (host.host.log / "ansible.log").read_text()

    network = {name: Path(f"/proc/{pid}/ns/net").readlink() for name, pid in before.items()}
    mounts = {Path(f"/proc/{pid}/ns/mnt").readlink() for pid in before.values()}
    guests = {network["target"], network["boot"], network["api"]}
    assert len(guests) == 1
    assert network["driver"] == network["manager"] == Path("/proc/self/ns/net").readlink() not in guests
    assert mounts == {Path("/proc/self/ns/mnt").readlink()}  # or FUSE mounts would not be seen

    commands = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in before.values())
    assert host.token_file.read_text() not in commands


def test_a_killed_service_is_started_again_and_the_driver_leaves_its_workers(host: HostSpec) -> None:
    before = service_pids(host)
    os.kill(before["target"], signal.SIGKILL)
    wait_for(lambda: service_pids(host).get("target", before["target"]) != before["target"])
    worker = worker_of(host)
    restart(host, "driver")
    assert service_pids(host)["driver"] != before["driver"]
    assert worker in processes(host.host.root)


def test_changes_restart_what_they_concern_and_what_was_ended_is_started(host: HostSpec) -> None:
    before = service_pids(host)
    run("supervisorctl", "-c", host.host.root / "etc" / "supervisord.conf", "stop", "manager")
    assert problems(host) == ["the service manager does not run"]
    moved = host.model_copy(update={"address": "10.77.0.3"})
    configure(moved)
    after = service_pids(moved)
    assert {name for name in SERVICES if before[name] == after[name]} == {"driver"}

    os.kill(int((host.host.run / "supervisord.pid").read_text()), signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in after.values()))
    assert problems(host) == [f"the service {name} does not run" for name in SERVICES]
    configure(host)
    api.wait_ready(host)
    assert not set(service_pids(host).values()) & set(after.values())


def test_what_is_missing_or_does_not_run_is_named_and_remove_leaves_nothing(
    spec: HostSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LivemountError, match="namespace lm-nowhere does not exist"):
        configure(spec.model_copy(update={"namespace": "lm-nowhere"}))
    with pytest.raises(LivemountError, match=r"Token is readable by its owner only failed .*is absent"):
        configure(spec.model_copy(update={"token_file": spec.home / "no-token"}))
    assert not spec.host.root.exists()
    monkeypatch.setattr(api, "START_SECONDS", 3)
    broken = Path(spec.variables["STAND_IN_BREAKS"], "livemount.boot")
    broken.touch()
    with pytest.raises(LivemountError, match=r"Services run failed .*boot is .*no luck today"):
        configure(spec)

    supervisor = int((spec.host.run / "supervisord.pid").read_text())
    assert worker_of(spec) in processes(spec.host.root)
    mounted = spec.host.mounts / "m"
    mounted.mkdir()
    run("mount", "-t", "tmpfs", "none", mounted)
    keep = spec.host.root / "disk"
    keep.write_bytes(bytes(1 << 20))
    device = run("losetup", "--find", "--show", keep).stdout.strip()

    remove(spec)

    assert not processes(spec.host.root)
    assert not Path(f"/proc/{supervisor}").exists()
    assert not spec.host.root.exists()
    assert str(spec.home) not in Path("/proc/self/mountinfo").read_text()
    assert not run("losetup", "--list", "--noheadings", "--output", "BACK-FILE", device).stdout.strip()
    assert [path.name for path in spec.paths.root.iterdir()] == ["secrets"]
    assert api._play(spec, "remove.yml") == 0
    assert not check(spec)


def test_a_home_that_is_too_deep_for_a_socket_is_refused(spec: HostSpec) -> None:
    with pytest.raises(UsageError, match="too long for a socket"):
        configure(spec.model_copy(update={"home": spec.home / ("x" * 80)}))


def test_units_for_systemd_are_sound(spec: HostSpec, tmp_path: Path) -> None:
    """No systemd here: the units are written as on a machine that has it, and judged by its own checker."""
    units = tmp_path / "units"
    units.mkdir()
    playbook = tmp_path / "units.yml"
    playbook.write_text(f"""
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.include_vars: {{file: "{api.ROLES}/roles/{{{{ item }}}}/vars/main.yml"}}
      loop: [pseudo_disk, iscsi_target, boot_server, host_api, manager]
    - ansible.builtin.include_vars: {{file: "{api.ROLES}/roles/{{{{ item }}}}/defaults/main.yml"}}
      loop: [common, pseudo_disk, host_api]
    - ansible.builtin.template:
        src: "{api.ROLES}/roles/service/templates/unit.service.j2"
        dest: "{units}/{{{{ service.name }}}}.service"
      loop: "{{{{ query('vars', *query('varnames', '^[a-z_]+_service$')) }}}}"
      loop_control: {{loop_var: service}}
""")
    variables = {
        "live_mount_environment": "local",
        "live_mount_home": str(tmp_path),
        "live_mount_cache": str(tmp_path),
        "live_mount_namespace": "lm-local-host",
        "live_mount_address": "10.77.0.2",
        "live_mount_token_file": str(spec.token_file),
        "live_mount_api_port": 8443,
        "live_mount_api_certificates": "/etc/livemount",
        "live_mount_guest_tools": str(tmp_path),
        "live_mount_python": sys.executable,
    }
    environment = {**os.environ, "ANSIBLE_CONFIG": str(api.ROLES / "ansible.cfg"), "ANSIBLE_HOME": str(tmp_path / "a")}
    run(Path(sys.executable).with_name("ansible-playbook"), "-e", json.dumps(variables), playbook, env=environment)
    files = sorted(units.iterdir())
    assert [file.stem for file in files] == sorted(SERVICES)
    verdict = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, files)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in verdict.stderr.splitlines() if str(units) in line or ".service:" in line]
    assert verdict.returncode == 0, verdict.stderr
    assert not complaints
    text = {file.stem: file.read_text() for file in files}
    assert "KillMode=process" in text["driver"]
    assert "--recall-quota 50%%\n" in text["driver"]
    assert "ProtectSystem" not in text["driver"]
    assert "NetworkNamespacePath=/run/netns/lm-local-host" in text["target"]
    listening = "--listen 8443 --certificate /etc/livemount/server-cert.pem --key /etc/livemount/server-key.pem\n"
    assert listening in text["api"]
    assert "ProtectSystem=strict" in text["target"]
