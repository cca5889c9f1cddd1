"""A virtual machine: a QEMU process with nothing on its disk but the machine image.

QEMU runs as an unprivileged user in a seccomp sandbox; what it needs of ours (tap, image, firmware variables, log,
listening sockets) it inherits as open descriptors, so all of it stays root's and below the cloud's folder. The disk is
the image opened read-only under a throw-away overlay. The process is known by its name, the machine's folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

from livemount.core.errors import LivemountError, NotFoundError, UnavailableError, UsageError
from livemount.core.machine import Firmware
from livemount.local_cloud import interface as interfaces
from livemount.local_cloud import process, qmp
from livemount.local_cloud.accelerator import QEMU, accelerator, as_machine_user
from livemount.local_cloud.api import Interface, Machine, MachineSpec, NetworkSpec

log = logging.getLogger(__name__)

_FIRMWARE = Path("/usr/share/OVMF")
_START_SECONDS = 60
_SOCKET_PATH_LIMIT = 107


def describe(spec: MachineSpec, folder: Path) -> Machine:
    """The machine whose files are in `folder`."""
    return Machine(
        spec=spec,
        console_log=folder / "console.log",
        console_socket=folder / "console.sock",
        control_socket=folder / "control.sock",
    )


def _word(folder: Path) -> str:
    # QEMU's option parser takes a doubled comma for one.
    return "guest=" + str(folder).replace(",", ",,")


def is_alive(folder: Path) -> bool:
    """Whether the machine's process is there and answers on its control socket."""
    if not process.find(process.with_word(_word(folder))):
        return False
    try:
        answer = qmp.execute(folder / "control.sock", "query-name")
    except UnavailableError as error:
        log.info("the machine of %s is there but does not answer: %s", folder, error)
        return False
    return isinstance(answer, dict) and answer.get("name") == str(folder)


def start(spec: MachineSpec, folder: Path, device: Interface, on: NetworkSpec) -> None:
    """Start the machine from an empty folder; returns when QEMU answers.

    Raises `NotFoundError` for a missing image or firmware, `ConflictError` for a tap in use, `LivemountError` with
    what QEMU said when it does not start. A machine that did not start leaves its folder to `stop`.
    """
    folder.mkdir(parents=True, mode=0o700)
    machine = describe(spec, folder)
    if len(os.fsencode(machine.console_socket)) > _SOCKET_PATH_LIMIT:
        raise UsageError(f"machine {spec.name}: the path {machine.console_socket} is too long for a socket")
    with ExitStack() as opened:

        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        def listen(path: Path) -> int:
            server = opened.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(str(path))
            server.listen()
            return server.fileno()

        try:
            image = keep(os.open(spec.image, os.O_RDONLY))
        except FileNotFoundError as error:
            raise NotFoundError(f"machine {spec.name}: the machine image {spec.image} does not exist") from error
        console_log = keep(os.open(machine.console_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        console = listen(machine.console_socket)
        control = listen(machine.control_socket)
        tap = keep(interfaces.open_tap(device, on))
        words = [
            *as_machine_user(),
            *(QEMU, "-name", _word(folder)),
            *("-nodefaults", "-no-user-config", "-display", "none"),
            *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
            # Without graphics SeaBIOS shows on the serial console what is written to the screen: iPXE, GRUB.
            *("-machine", "q35,graphics=off", "-accel", accelerator(), "-cpu", "max"),
            *("-smp", str(spec.cpus), "-m", str(spec.memory_mib)),
            *("-add-fd", f"fd={image},set=1", "-add-fd", f"fd={console_log},set=2"),
            *("-drive", "if=none,id=image,format=raw,file=/dev/fdset/1,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=image,serial=machine-image,bootindex=0"),
            *("-netdev", f"tap,id=net,fd={tap}"),
            # No ROM: nothing but the machine image boots.
            *("-device", f"virtio-net-pci,netdev=net,mac={device.mac},romfile="),
            *("-chardev", f"socket,id=console,fd={console},server=on,wait=off,logfile=/dev/fdset/2,logappend=on"),
            *("-device", "isa-serial,chardev=console"),
            *("-chardev", f"socket,id=control,fd={control},server=on,wait=off"),
            *("-mon", "chardev=control,mode=control"),
        ]
        descriptors = [image, console_log, console, control, tap]
        if spec.firmware is Firmware.UEFI:
            code, template = _FIRMWARE / "OVMF_CODE_4M.fd", _FIRMWARE / "OVMF_VARS_4M.fd"
            if not (code.exists() and template.exists()):
                raise NotFoundError(f"UEFI firmware is missing in {_FIRMWARE}", hint="install the package ovmf")
            shutil.copyfile(template, folder / "variables.fd")
            # QEMU opens a disk to read first, and to write once a device wants to: it takes the one that fits.
            variables = [keep(os.open(folder / "variables.fd", mode)) for mode in (os.O_RDONLY, os.O_RDWR)]
            descriptors += variables
            words += ["-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"]
            for descriptor in variables:
                words += ["-add-fd", f"fd={descriptor},set=3"]
            words += ["-drive", "if=pflash,unit=1,format=raw,file=/dev/fdset/3"]
        said = folder / "qemu.log"
        process.start(words, said, namespace=on.namespace, keep=descriptors)
    # From here on only QEMU holds the listening sockets: when it ends, so does the connection that waits for it.
    try:
        qmp.execute(machine.control_socket, "query-name", timeout=_START_SECONDS)
    except UnavailableError as error:
        reason = said.read_text(errors="replace")[-1000:].strip() or str(error)
        raise LivemountError(f"machine {spec.name} does not start: {reason}") from error


def stop(folder: Path, wait: float) -> None:
    """Ask the guest to power off and wait up to `wait` seconds, else end the process; then remove its files."""
    is_ours = process.with_word(_word(folder))
    for command, seconds in (("system_powerdown", wait), ("quit", 5.0)):
        if seconds > 0 and process.find(is_ours):
            try:
                qmp.execute(folder / "control.sock", command)
            except UnavailableError as error:
                # It may just have ended; if not, the next, harder way follows.
                log.info("%s of the machine of %s: %s", command, folder, error)
                continue
            process.wait(is_ours, seconds)
    process.end(is_ours)
    if folder.exists():
        shutil.rmtree(folder)
