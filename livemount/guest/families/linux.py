"""Linux guests: an initrd that logs in to the target, and a root file system that does not cut its own disk off."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.resources import files

from livemount.core.errors import UnsupportedError
from livemount.core.machine import Firmware
from livemount.guest import disk as disks
from livemount.guest import fstab, modules
from livemount.guest.api import GuestReport
from livemount.guest.cpio import Entry, archive, compress
from livemount.guest.disk import Partition
from livemount.guest.families.family import Family, Job
from livemount.guest.initrd import KINDS, Initrd, InitrdKind, segments
from livemount.guest.mounts import mounted
from livemount.guest.rooted import Root
from livemount.guest.system import FSTAB, find_root, mount_part, os_release, read_fstab
from livemount.guest.tools import HOME_IN_INITRD

HOME = "/usr/lib/livemount"
UNITS = "/etc/systemd/system"
NETWORK_WARNINGS = {
    "NetworkManager": "NetworkManager configures the network: that it keeps the root disk's interface is not tested",
    "cloud-init": "cloud-init is installed: it may configure the network anew at the first boot in a cloud",
}
# What the root file system itself takes, beside the initrds: tools, units, and room to breathe.
ROOT_SPACE = 32 * 1024 * 1024
EDITS = {
    f"{HOME}/init": ("init.sh", 0o755),
    f"{HOME}/login": ("login.sh", 0o644),
    f"{HOME}/network": ("network.sh", 0o755),
    f"{UNITS}/livemount-network.service": ("livemount-network.service", 0o644),
    f"{UNITS}/networking.service.d/livemount.conf": ("keep-interface.conf", 0o644),
    f"{UNITS}/ifup@.service.d/livemount.conf": ("keep-interface.conf", 0o644),
}


@dataclass(frozen=True)
class System:
    """An installed Linux, its tree mounted."""

    root: Root
    partition: Partition
    name: str
    kind: InitrdKind
    initrds: list[Initrd]
    network: list[str]
    """What configures its network."""


def prepare(job: Job) -> GuestReport | None:
    """Prepare the disk's Linux; `None` when there is none. Raises `UnsupportedError` when it cannot work."""
    partition = find_root(job.disk, job.scratch)
    if partition is None:
        return None
    if job.request.firmware not in job.firmware:
        can = " and ".join(firmware.upper() for firmware in job.firmware) or "no firmware"
        raise UnsupportedError(
            f"the guest on {job.disk.path} cannot boot under {job.request.firmware.upper()}: its disk boots under {can}"
        )
    changes = []
    with _system(job, partition) as system:
        kernels = []
        refusals = []
        for initrd in system.initrds:
            try:
                if _prepare_initrd(job, system.root, initrd):
                    changes.append(f"{initrd.path}: can log in to an iSCSI target")
                kernels.append(initrd.kernel)
            except UnsupportedError as error:
                refusals.append(f"{initrd.path}: {error.message}")
        if not kernels:
            raise UnsupportedError(f"no kernel of {system.name} can boot from iSCSI: {'; '.join(refusals)}")
        warnings = [f"not prepared, and will not boot: {refusal}" for refusal in refusals]
        made, told = _edit(job, system)
        changes += made
        warnings += told + [NETWORK_WARNINGS[name] for name in system.network if name in NETWORK_WARNINGS]
    if job.request.firmware == Firmware.UEFI and job.missing_loader is not None:
        disks.add_removable_loader(job.disk, job.missing_loader, job.scratch)
        changes.append(f"ESP: {job.missing_loader} copied to {disks.REMOVABLE_LOADER}")
    return GuestReport(
        family=FAMILY.name,
        system=system.name,
        root=f"{partition.filesystem} UUID={partition.uuid} (partition {partition.number})",
        firmware=job.firmware,
        kernels=kernels,
        changes=changes,
        edits=tuple(system.root.edits),
        warnings=tuple(warnings),
        initrd=system.kind.name,
        network=tuple(system.network),
        seconds=0,
    )


FAMILY = Family("linux", prepare)


@contextmanager
def _system(job: Job, partition: Partition) -> Iterator[System]:
    """Mount the tree with its separate /boot and /usr, and look at it."""
    folder = job.scratch / "root"
    folder.mkdir()
    # Left in reverse: the tree's descriptor is closed before the tree is unmounted.
    with ExitStack() as stack:
        stack.enter_context(mounted(job.disk, partition, folder, writable=True))
        root = stack.enter_context(Root.at(folder))
        for entry in read_fstab(root):
            if entry.place in ("/boot", "/usr"):
                mount_part(job.disk, root, entry.device, entry.place, writable=True)
        yield _look(root, partition)
    descriptor = os.open(job.disk.path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _look(root: Root, partition: Partition) -> System:
    name = os_release(root) or "Linux"
    for kind in KINDS:
        initrds = kind.find(root)
        if initrds:
            return System(root, partition, name, kind, initrds, _network(root))
    tools = ", ".join(kind.name for kind in KINDS)
    raise UnsupportedError(
        f"{name} has no initrd that can be prepared: none of an installed kernel in /boot made by {tools}"
    )


def _mend_fstab(job: Job, root: Root) -> tuple[list[str], list[str]]:
    """Changes and warnings."""
    if not root.is_file(FSTAB):
        return [], []
    # Bytes of it that are no text stay as they are.
    text = root.read(FSTAB, 1024 * 1024).decode(errors="surrogateescape")
    mended = fstab.mend(text, job.disk, job.others)
    root.write(FSTAB, mended.text.encode(errors="surrogateescape"))
    return [f"{FSTAB}: {change}" for change in mended.changes], [f"{FSTAB}: {text}" for text in mended.warnings]


def _network(root: Root) -> list[str]:
    """What configures the guest's network, as far as its files tell."""
    found = []
    if any(
        "systemd-networkd.service" in root.names(f"{UNITS}/{place}.target.wants") for place in ("multi-user", "sysinit")
    ):
        found.append("networkd")
    if "NetworkManager.service" in root.names(f"{UNITS}/multi-user.target.wants"):
        found.append("NetworkManager")
    if root.is_file("/etc/network/interfaces") and (root.is_file("/sbin/ifup") or root.is_file("/usr/sbin/ifup")):
        found.append("ifupdown")
    if any(name.endswith(".yaml") for name in root.names("/etc/netplan")):
        found.append("netplan")
    if root.is_file("/etc/cloud/cloud.cfg"):
        found.append("cloud-init")
    return found


def _file(name: str) -> bytes:
    return (files("livemount.guest") / "files" / name).read_bytes()


def _prepare_initrd(job: Job, root: Root, initrd: Initrd) -> bool:
    """Append the segments; whether anything had to change."""
    data = memoryview(root.read(initrd.path, segments.LARGEST_INITRD))
    original = len(data)
    present = None
    journal = root.read_text(segments.journal_of(initrd.path), 64).strip()
    marked = segments.read_mark(bytes(data[-segments.MARK_LENGTH :]))
    if marked is not None:
        original, present = marked
    elif journal.isdigit():
        original = int(journal)
    if original > len(data):
        raise UnsupportedError("its mark or journal names a length that it does not have")
    try:
        init = segments.original_init(data[:original], job.scratch)
    except segments.PreparedByHook:
        return False
    found = modules.closure(root, initrd.kernel, job.scratch)
    order = "".join(f"{module.name}\n" for module in found)
    home = HOME_IN_INITRD
    kernel = archive(
        [
            *(Entry.file(f"{home}/modules/{module.name}", module.data, 0o644) for module in found),
            Entry.file(f"{home}/modules/order", order.encode(), 0o644),
            Entry.file(f"{home}/login", _file("login.sh"), 0o644),
            init,
            # Last: an initrd that is cut off before it still has the guest's own /init.
            Entry.file("init", _file("init.sh"), 0o755),
        ]
    )
    base = job.tools.base_segment.read_bytes()
    digest = hashlib.sha256(base + kernel).hexdigest()
    if present == digest:
        return False
    segments.append(root, initrd.path, original, base, compress(kernel, 6), digest)
    return True


def _edit(job: Job, system: System) -> tuple[list[str], list[str]]:
    """Write our files into the root file system; a line for each change, and one for each thing that will not work."""
    root = system.root
    if not any(root.is_file(path) for path in ("/lib/systemd/systemd", "/usr/lib/systemd/systemd")):
        raise UnsupportedError(f"{system.name} is not started by systemd")
    if root.free("/") < ROOT_SPACE:
        raise UnsupportedError(f"no space in / of the guest: {root.free('/')} bytes are free, {ROOT_SPACE} are needed")
    tools = [
        root.write(f"{HOME}/busybox", job.tools.busybox.read_bytes(), 0o755),
        root.write(f"{HOME}/base.cpio.gz", job.tools.base_segment.read_bytes()),
        root.write(f"{HOME}/modules", "".join(f"{name}\n" for name in modules.WANTED).encode()),
    ]
    changes = [f"{HOME}: tools"] if any(tools) else []
    changes += [path for path, (name, mode) in EDITS.items() if root.write(path, _file(name), mode)]
    if root.link(f"{UNITS}/sysinit.target.wants/livemount-network.service", "../livemount-network.service"):
        changes.append("the interface of the root disk keeps its address while the guest runs")
    mended, warnings = _mend_fstab(job, root)
    changes += mended
    if system.kind.keep(root):
        changes.append(f"{system.kind.name} keeps the iSCSI login in initrds made anew")
    if job.request.up_url is not None:
        said = [
            root.write(f"{HOME}/up", _file("up.sh"), 0o755),
            root.write(f"{HOME}/up.url", f"{job.request.up_url}\n".encode()),
            root.write(f"{UNITS}/livemount-up.service", _file("livemount-up.service")),
            root.link(f"{UNITS}/multi-user.target.wants/livemount-up.service", "../livemount-up.service"),
        ]
        if any(said):
            changes.append(f"livemount-up.service asks {job.request.up_url} at multi-user")
    return changes, warnings
