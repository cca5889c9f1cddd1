"""Makes a machine, or a network namespace of this one, a media agent by the Ansible role `media_agent`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from livemount.agent.config import AgentConfig, ExportConfig, RepositoryConfig
from livemount.configure.api import ROLES, START_SECONDS, plain_path
from livemount.configure.playbook import Inventory, play
from livemount.configure.services import service_manager
from livemount.core.errors import DeniedError
from livemount.core.machine import Frozen
from livemount.core.quota import QuotaText
from livemount.media.certificates import fault

GROUP = "media_agents"


class AgentLink(Frozen):
    """How a namespace of an agent is connected with the machine's own network."""

    device: str = Field(pattern="^[a-z0-9-]{1,15}$")
    """The machine's end."""
    address: str
    """Of the agent, with its prefix length."""
    machine_address: str


class AgentSpec(Frozen):
    """A media agent on this machine."""

    name: str
    root: Path
    """Its own folder."""
    listen: str
    certificates: Path
    """Folder with the server's certificate, as `Authority.server` makes it."""
    exports: dict[str, ExportConfig] = Field(default_factory=dict)
    repositories: dict[str, RepositoryConfig] = Field(default_factory=dict)
    cache_quota: QuotaText = "10GiB"
    namespace: str | None = None
    link: AgentLink | None = None
    """Makes the namespace."""
    python: Path = Path(sys.executable)
    variables: dict[str, str] = Field(default_factory=dict)

    @field_validator("root", "certificates", "python")
    @classmethod
    def _plain(cls, path: Path) -> Path:
        return plain_path(path)

    def config(self) -> AgentConfig:
        """The agent's configuration. Raises `ValidationError`."""
        return AgentConfig(
            listen=self.listen,
            certificates=self.root / "etc" / "tls",
            state=self.root / "state",
            cache_quota=self.cache_quota,
            exports=self.exports,
            repositories=self.repositories,
        )


def configure_agent(spec: AgentSpec) -> int:
    """Make the agent what the role says; returns how many tasks changed something, when it runs.

    Raises `DeniedError` for a certificate that clients would refuse, `LivemountError` that names the failed task and
    its message.
    """
    spec.config()
    problem = fault(spec.certificates, "server")
    if problem is not None:
        raise DeniedError(problem)
    return _play(spec, "media_agent.yml")


def remove_agent(spec: AgentSpec) -> int:
    """End the agent, delete its files; likewise."""
    return _play(spec, "remove_media_agent.yml")


def agent_pid(spec: AgentSpec) -> int | None:
    """The agent's process; none when it does not run."""
    return service_manager(spec.name, spec.root, prefix="livemount_agent-").pids().get("agent")


def _play(spec: AgentSpec, playbook: str) -> int:
    variables: dict[str, Any] = {
        "media_agent_name": spec.name,
        "media_agent_root": str(spec.root),
        "media_agent_python": str(spec.python),
        "media_agent_certificates": str(spec.certificates),
        "media_agent_listen": spec.listen,
        "media_agent_exports": _plain(spec.exports),
        "media_agent_repositories": _plain(spec.repositories),
        "media_agent_cache_quota": spec.cache_quota,
        "media_agent_variables": spec.variables,
        "media_agent_start_seconds": START_SECONDS,
        "media_agent_namespace": spec.namespace or "",
        "media_agent_link": spec.link.model_dump() if spec.link else {},
    }
    here = {"ansible_connection": "local", "ansible_python_interpreter": os.fsdecode(sys.executable)}
    inventory: Inventory = {GROUP: {"hosts": {"localhost": here}, "vars": variables}}
    return play(ROLES, playbook, inventory, spec.root / "log" / "ansible.log")


def _plain(configs: dict[str, Any]) -> dict[str, Any]:
    return {name: config.model_dump(mode="json", exclude_none=True) for name, config in configs.items()}
