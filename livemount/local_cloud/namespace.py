"""Network namespaces: making, removing, looking into and calling from within one."""

from __future__ import annotations

import ctypes
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from livemount.core.errors import LivemountError
from livemount.local_cloud.locks import step

FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


def exists(namespace: str) -> bool:
    """Whether the namespace is there (a file without a namespace on it, left by a killed `ip netns add`, is not)."""
    return inode(namespace) is not None


def inode(namespace: str) -> int | None:
    """The inode of the namespace, or `None` when there is none of that name."""
    try:
        found = (FOLDER / namespace).stat()
    except FileNotFoundError:
        return None
    return found.st_ino if found.st_dev == Path("/proc/self/ns/net").stat().st_dev else None


def add(namespace: str) -> None:
    """Make a namespace, with its loopback device up and without forwarding between its interfaces."""
    if not exists(namespace):
        (FOLDER / namespace).unlink(missing_ok=True)
        step("ip", "netns", "add", namespace)
    step("ip", "-n", namespace, "link", "set", "lo", "up")
    # A new namespace may inherit the machine's setting.
    if step("sysctl", "-n", "net.ipv4.ip_forward", namespace=namespace).stdout.strip() != "0":
        step("sysctl", "-q", "-w", "net.ipv4.ip_forward=0", namespace=namespace)


def delete(namespace: str) -> None:
    """Remove a namespace, if it is there. Its devices go with it once no process is in it."""
    if exists(namespace):
        step("ip", "netns", "delete", namespace)
    (FOLDER / namespace).unlink(missing_ok=True)


def names() -> list[str]:
    """All named namespaces of this machine."""
    return sorted(path.name for path in FOLDER.iterdir() if exists(path.name)) if FOLDER.exists() else []


def devices(namespace: str) -> dict[str, dict[str, Any]]:
    """The network devices in a namespace by name, as `ip -json -details address` shows them; empty without one."""
    shown = step("ip", "-n", namespace, "-json", "-details", "address", check=False)
    if shown.returncode != 0:
        return {}
    return {device["ifname"]: device for device in json.loads(shown.stdout or "[]")}


def call_within(namespace: str, function: Callable[[], T]) -> T:
    """Call `function` in a thread of its own that is in the namespace: only that thread ever enters it."""
    results: list[T] = []
    errors: list[Exception] = []

    def enter_and_call() -> None:
        try:
            descriptor = os.open(FOLDER / namespace, os.O_RDONLY)
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                    raise LivemountError(f"cannot enter namespace {namespace}: {os.strerror(ctypes.get_errno())}")
            finally:
                os.close(descriptor)
            results.append(function())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=enter_and_call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
