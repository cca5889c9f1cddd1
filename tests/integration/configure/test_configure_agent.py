"""The role `media_agent`, for real: an agent in a namespace of its own serves a disk, and is gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from livemount.agent.config import ExportConfig
from livemount.configure.agent import AgentLink, AgentSpec, agent_pid, configure_agent, remove_agent
from livemount.core.errors import DeniedError, UnavailableError
from livemount.core.run import run
from livemount.media import Source, open_source
from livemount.media.certificates import Authority
from tests.support.foreign import write_disk

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


@pytest.fixture
def spec(short_folder: Path, tmp_path: Path, authority: Authority) -> Iterator[AgentSpec]:
    tag = uuid.uuid4().hex[:6]
    subnet = f"10.{64 + int(tag[:2], 16) % 64}.{int(tag[2:4], 16)}"
    disk = write_disk(tmp_path / "disk.raw")
    made = AgentSpec(
        name=tag,
        root=short_folder / "agent",
        listen=f"{subnet}.1:10809",
        certificates=authority.server("store1", [f"{subnet}.1"]).folder,
        exports={"web01": ExportConfig(source=disk.as_uri())},
        cache_quota="1MiB",
        namespace=f"lma-{tag}",
        link=AgentLink(device=f"lma{tag}", address=f"{subnet}.1/30", machine_address=f"{subnet}.2/30"),
        variables={"PYTHONPATH": str(ROOT)},
    )
    try:
        yield made
    finally:
        remove_agent(made)
        assert not made.root.exists()


def test_an_agent_runs_and_leaves_nothing(spec: AgentSpec, authority: Authority, tmp_path: Path) -> None:
    configure_agent(spec)
    uri = f"agent://{spec.listen}/web01?certificates={authority.client('lm1').folder}"
    source = _opened(uri)
    content = (tmp_path / "disk.raw").read_bytes()
    assert source.read(0, source.size) == content
    before = agent_pid(spec)
    assert before is not None
    assert Path(f"/proc/{before}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    assert configure_agent(spec) == 0
    assert agent_pid(spec) == before
    secrets = [spec.root / "etc/tls/server-key.pem", spec.root / "etc/agent.yaml", spec.root / "state"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in secrets)

    # Killed, it is started again.
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            assert source.read(0, 65536) == content[:65536]
            break
        except UnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    source.close()
    assert not Path(f"/proc/{before}").exists()

    # Another configuration starts it anew, once its certificate is good.
    moved = spec.model_copy(update={"exports": {"web02": spec.exports["web01"]}})
    with pytest.raises(DeniedError, match="there is no"):
        configure_agent(moved.model_copy(update={"certificates": tmp_path}))
    assert configure_agent(moved) > 0
    other = _opened(uri.replace("web01", "web02"))
    assert other.read(0, 512) == content[:512]
    other.close()

    assert remove_agent(spec) > 0
    assert not spec.root.exists()
    assert not Path("/run/netns", str(spec.namespace)).exists()
    assert spec.link is not None
    assert not Path("/sys/class/net", spec.link.device).exists()
    listed = subprocess.run(["pgrep", "--full", str(spec.root)], capture_output=True, text=True, check=False)
    assert listed.stdout == ""


def _opened(uri: str) -> Source:
    deadline = time.monotonic() + 60
    while True:
        try:
            return open_source(uri, None)
        except UnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_the_unit_for_systemd_is_sound(authority: Authority, tmp_path: Path) -> None:
    """No systemd here: the unit is written as on a machine that has it, and judged by its own checker."""
    playbook = tmp_path / "unit.yml"
    roles = ROOT / "ansible" / "roles"
    playbook.write_text(f"""
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.include_vars: {{file: "{roles}/media_agent/defaults/main.yml"}}
    - ansible.builtin.include_vars: {{file: "{roles}/media_agent/vars/main.yml"}}
    - ansible.builtin.template:
        src: "{roles}/service/templates/unit.service.j2"
        dest: "{tmp_path}/agent.service"
      vars: {{service: "{{{{ media_agent_service }}}}"}}
""")
    variables = {
        "media_agent_python": sys.executable,
        "media_agent_certificates": str(authority.server("store1", ["10.0.0.5"]).folder),
        "media_agent_repositories": {"main": {"repository": "/srv/repository", "password_file": "/etc/password"}},
    }
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible/ansible.cfg"), "ANSIBLE_HOME": f"{tmp_path}/a"}
    run(Path(sys.executable).with_name("ansible-playbook"), "-e", json.dumps(variables), playbook, env=environment)
    unit = tmp_path / "agent.service"
    verdict = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert verdict.returncode == 0, verdict.stderr
    assert "agent.service:" not in verdict.stderr
    text = unit.read_text()
    assert "ReadWritePaths=/var/lib/livemount-agent /tmp /var/tmp -/srv/repository\n" in text
    assert "ProtectSystem=strict" in text
