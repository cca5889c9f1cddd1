"""A place in which guests boot: a network of the local cloud, a live-mount host in it, the fixed machine image.

The parts are the product's own, put together in this process instead of by Pulumi and Ansible. Nobody watches the
mounts: a script stays published until its mount is taken away.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bench.rig import Rig, open_folder, wait_for
from demo.guest import ROOT_START, build_guest
from livemount.boot.api import BOOT_NAME, UP_PATH, BootScript, RequestKind
from livemount.boot.nginx import NginxBoot
from livemount.core.machine import Firmware
from livemount.core.run import run
from livemount.core.secrets import new_secret
from livemount.core.settings import Settings
from livemount.guest.api import GuestRequest
from livemount.guest.prepare import prepare
from livemount.guest.tools import GuestTools
from livemount.host.mounts import Mounts
from livemount.host.records import Records
from livemount.image.api import ImageRequest
from livemount.image.bake import bake
from livemount.local_cloud.api import InterfaceKind, InterfaceSpec, MachineSpec, NetworkSpec
from livemount.local_cloud.cloud import QemuCloud
from livemount.target.api import Chap, TargetSpec, initiator_iqn, target_iqn
from livemount.target.tgt import TgtTarget

NETWORK = "net"
HOST = "10.77.0.2"
FIRMWARE = Firmware.BIOS
MEMORY_MIB = 768
BOOT_PATIENCE = 400.0
GUEST = "bench01"
SIZE_GIB = 20


def guest_image() -> Path:
    """The demonstration's guest on a sparse disk of `SIZE_GIB`, made once and kept in the cache."""
    settings = Settings()
    return build_guest(settings.cache / "guests", hostname=GUEST, size_gib=SIZE_GIB, cache=settings.cache)


def copy_sparse(image: Path, to: Path) -> Path:
    """Copy a disk without its holes; the copy."""
    run("cp", "--sparse=always", image, to)
    return to


def add_file(disk: Path, content: Path) -> None:
    """Put a file into the root folder of the guest on a disk, as if it had been written there since."""
    run("debugfs", "-w", "-R", f"write {content} {content.name}", f"{disk}?offset={ROOT_START}")


class Place:
    """Use it by `open_place`. Guests' interfaces are known by names of the caller's choice."""

    def __init__(self, rig: Rig, cloud: QemuCloud) -> None:
        self.rig = rig
        self._cloud = cloud
        self._tools = GuestTools.default()
        self._boot = NginxBoot(rig.host)
        self._target = TgtTarget(rig.host.target_socket)
        self.mounts = Mounts(
            address=HOST,
            records=Records(rig.host.mounts, rig.host.recall),
            driver=rig.driver,
            target=self._target,
            boot=self._boot,
            prepare=partial(prepare, tools=self._tools),
        )
        self._image = bake(ImageRequest(), rig.folder / "images", Settings().cache / "ipxe").path

    def start(self) -> None:
        """Start the host's services."""
        self.rig.start_driver()
        self.tgtd = self.rig.start_target()
        root = str(self.rig.host.root)
        # A killed nginx leaves its workers behind, the first process of a namespace takes all of it along.
        alone = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--")
        words = (sys.executable, "-m", "livemount.boot", "--root", root, "--address", HOST)
        self.rig.start("nginx", *alone, *words, inside=True)
        # nginx writes it when it listens.
        wait_for((self.rig.host.run / "nginx.pid").exists, "the boot server listens")

    def address(self, interface: str) -> str:
        """The address of an interface, which is made on first use."""
        return self._cloud.create_interface(InterfaceSpec(name=interface, network=NETWORK)).address

    def prepare(self, disk: Path) -> None:
        """Guest preparation of a plain disk."""
        prepare(disk, GuestRequest(firmware=FIRMWARE, up_url=f"http://{HOST}{UP_PATH}"), self._tools)

    @contextlib.contextmanager
    def serving(self, disk: Path, interface: str) -> Iterator[None]:
        """Export a plain, prepared disk to the guest of an interface, as a mount's is."""
        name, address = f"plain-{interface}", self.address(interface)
        chap = Chap(user=name, secret=new_secret())
        self._target.create(TargetSpec(mount=name, backing_file=disk, initiator_address=address, chap=chap))
        script = BootScript(
            mount=name,
            address=address,
            portal=HOST,
            target_iqn=target_iqn(name),
            initiator_iqn=initiator_iqn(name),
            chap=chap,
            firmware=FIRMWARE,
        )
        self._boot.publish(script)
        try:
            yield
        finally:
            self._boot.withdraw(address)
            self._target.delete(name)

    def boot(self, interface: str) -> float:
        """Boot a machine on an interface and end it; seconds from its start to multi-user."""
        address = self.address(interface)
        before = len(self._told_up(address))
        spec = MachineSpec(
            name=interface, interface=interface, image=self._image, firmware=FIRMWARE, memory_mib=MEMORY_MIB
        )
        began = time.monotonic()
        self._cloud.create_machine(spec)
        try:
            wait_for(lambda: len(self._told_up(address)) > before, "the guest is up", BOOT_PATIENCE)
            return time.monotonic() - began
        finally:
            self._cloud.delete_machine(interface, wait=0)

    def _told_up(self, address: str) -> list[datetime]:
        asked = self._boot.requests(address, datetime.fromtimestamp(0, UTC))
        return [request.time for request in asked if request.kind is RequestKind.UP]


@contextlib.contextmanager
def open_place(directory: Path) -> Iterator[Place]:
    """A place with its services running, below `directory`; taken away afterwards."""
    name = f"lmb-{os.getpid()}"
    with open_folder(directory) as folder:
        cloud = QemuCloud(folder / "cloud")
        try:
            cloud.create_network(NetworkSpec(name=NETWORK, namespace=f"{name}-net", records={BOOT_NAME: HOST}))
            host = InterfaceSpec(name="host", network=NETWORK, kind=InterfaceKind.HOST, address=HOST, namespace=name)
            cloud.create_interface(host)
            rig = Rig(folder, name, portal=HOST)
            try:
                place = Place(rig, cloud)
                place.start()
                yield place
            finally:
                rig.close()
        finally:
            cloud.destroy_all()
