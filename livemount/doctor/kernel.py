"""Whether the kernel, and whoever keeps us in a container, allow what live mounts need.

Devices are made in a network namespace that ends with the command, so nothing is left.
"""

from __future__ import annotations

import os

from livemount.core.errors import LivemountError
from livemount.core.run import CommandError, run
from livemount.doctor.api import check
from livemount.local_cloud.accelerator import accelerator

MODULE = "load the kernel module (modprobe {0}), or give the container the device and the right to use it"


@check("root")
def root() -> str:
    """Mounts and network namespaces are root's."""
    if os.geteuid() != 0:
        raise LivemountError(f"user id is {os.geteuid()}", hint="run as root (sudo)")
    return "yes"


def _opens(path: str, module: str) -> str:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise LivemountError(f"{path}: {error.strerror}", hint=MODULE.format(module)) from error
    return path


@check("FUSE")
def fuse() -> str:
    """Pseudo-disks are files of a FUSE file system."""
    return _opens("/dev/fuse", "fuse")


@check("loop devices")
def loop() -> str:
    """Guest preparation mounts pseudo-disks through them."""
    _opens("/dev/loop-control", "loop")
    return run("losetup", "--find").stdout.strip()


def _in_new_namespace(*words: str, feature: str, module: str) -> str:
    try:
        run("unshare", "--net", *words)
    except CommandError as error:
        raise LivemountError(f"{feature}: {error.stderr.strip()}", hint=MODULE.format(module)) from error
    return feature


@check("network namespaces")
def namespaces() -> str:
    """The local cloud and its host live in them."""
    try:
        run("unshare", "--net", "true")
    except CommandError as error:
        raise LivemountError(
            error.stderr.strip(), hint="run as root, in a container with the capability CAP_SYS_ADMIN"
        ) from error
    return "can be made"


@check("bridges")
def bridge() -> str:
    """The local cloud's network is one."""
    return _in_new_namespace("ip", "link", "add", "probe", "type", "bridge", feature="bridge", module="bridge")


@check("virtual Ethernet pairs")
def veth() -> str:
    """They join the live-mount host to the local cloud's network."""
    words = ("ip", "link", "add", "probe", "type", "veth", "peer", "name", "other")
    return _in_new_namespace(*words, feature="veth", module="veth")


@check("tap devices")
def tap() -> str:
    """Virtual machines' interfaces."""
    _opens("/dev/net/tun", "tun")
    return _in_new_namespace("ip", "tuntap", "add", "name", "probe", "mode", "tap", feature="tap", module="tun")


@check("acceleration")
def acceleration() -> str:
    """Never missing: without KVM, QEMU translates instructions itself."""
    if accelerator() == "kvm":
        return "KVM"
    return "none that works: guests of the local cloud run some ten times slower (QEMU's TCG)"
