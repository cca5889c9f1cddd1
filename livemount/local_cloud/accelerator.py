"""The rights virtual machines run with, and whether KVM works with them: found out by running a few instructions.

/dev/kvm may exist, and even make machines, and still be unable to run one.
"""

from __future__ import annotations

import functools
import logging
import os
import pwd
import subprocess
import tempfile
from pathlib import Path

from livemount.local_cloud.network import system_user

log = logging.getLogger(__name__)

QEMU = "qemu-system-x86_64"
_DEVICE = Path("/dev/kvm")
_PROBE_SECONDS = 20
# mov dx, 0x501; mov al, 42; out dx, al; hlt: QEMU's debug exit device ends it with the status 42 * 2 + 1.
_BOOT_SECTOR = bytes.fromhex("ba0105b02aeef4").ljust(510, b"\0") + b"\x55\xaa"
_EXIT_STATUS = 85
_DISK_SIZE = 1 << 20
"""Bytes; SeaBIOS boots no disk that is smaller than a cylinder."""


def as_machine_user() -> list[str]:
    """The words that start a program as the user of virtual machines (`livemount-vm`, else `nobody`).

    It has no capability and no group but its own and, where only that group may open KVM, KVM's.
    """
    user = pwd.getpwnam(system_user("livemount-vm"))
    group = _DEVICE.stat().st_gid if _DEVICE.exists() else 0
    return [
        "setpriv",
        f"--reuid={user.pw_uid}",
        f"--regid={user.pw_gid}",
        f"--groups={group}" if group else "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
        "--reset-env",
    ]


@functools.cache
def accelerator() -> str:
    """`kvm` where it works, else `tcg`; asked once a process (well below a second where it does not)."""
    return "kvm" if _DEVICE.exists() and _runs("kvm") else "tcg"


def _runs(name: str) -> bool:
    """Whether a boot sector runs to its end under this accelerator."""
    with tempfile.TemporaryFile() as file:
        file.write(_BOOT_SECTOR.ljust(_DISK_SIZE, b"\0"))
        file.flush()
        disk = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)
    try:
        words = [
            *as_machine_user(),
            *(QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
            *("-accel", name, "-cpu", "max"),
            *("-device", "isa-debug-exit,iobase=0x501,iosize=1"),
            *("-add-fd", f"fd={disk},set=1"),
            *("-drive", "if=virtio,format=raw,file=/dev/fdset/1,snapshot=on"),
        ]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            pass_fds=[disk],
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        log.info("accelerator %s does not run a boot sector within %d s", name, _PROBE_SECONDS)
        return False
    finally:
        os.close(disk)
    if done.returncode != _EXIT_STATUS:
        log.info("accelerator %s does not work: %s", name, done.stderr.strip()[-300:])
    return done.returncode == _EXIT_STATUS
