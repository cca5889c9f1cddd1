"""Configures live-mount hosts with the Ansible roles, and tells whether they still are what was configured."""

from livemount.configure.api import (
    SERVICES,
    HostSpec,
    check,
    configure,
    problems,
    remove,
    restart,
    roles_digest,
    service_pids,
    wait_ready,
)

__all__ = [
    "SERVICES",
    "HostSpec",
    "check",
    "configure",
    "problems",
    "remove",
    "restart",
    "roles_digest",
    "service_pids",
    "wait_ready",
]
