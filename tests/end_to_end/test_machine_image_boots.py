"""The machine image in QEMU: asks the fixed URL, logs in to the real tgtd with CHAP and boots from the target's disk.

No guest is needed: the disk behind the target says on the console that it was started (a boot sector for BIOS, for
UEFI another iPXE image).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from livemount.boot.api import BOOT_NAME, BootScript, RequestKind
from livemount.boot.nginx import NginxBoot
from livemount.core.errors import LivemountError
from livemount.core.machine import Firmware
from livemount.core.run import in_namespace, run
from livemount.core.secrets import new_secret
from livemount.core.settings import HostPaths
from livemount.image.api import ImageRequest
from livemount.image.bake import bake
from livemount.image.disk import make_disk
from livemount.image.ipxe import default_folder, fetch
from livemount.target.api import Chap, Session, TargetSpec, initiator_iqn, target_iqn
from livemount.target.tgt import TgtTarget

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]

HOST = "10.97.0.1"
GUEST = "10.97.0.10"
MAC = "52:54:00:97:00:10"
MOUNT = "web01"
STARTED = "the pseudo-disk was started"
DEADLINE = 300.0
"""Seconds for each step; some 10 on an idle machine."""
CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")


class Bench:
    """A network with DHCP and DNS, a boot server and a target in one namespace."""

    def __init__(self, root: Path, namespace: str, processes: ExitStack) -> None:
        self.root = root
        self.namespace = namespace
        self.processes = processes
        self.host = HostPaths(root / "host")
        self.boot = NginxBoot(self.host)
        self.target = TgtTarget(self.host.target_socket)
        self.console = root / "console.log"
        python = [sys.executable, "-m"]
        root_option = ["--root", str(self.host.root)]
        self.start("tgtd", *python, "livemount.target", *root_option, "--portal", HOST)
        # A killed nginx leaves its workers behind, the first process of a namespace takes all of it along.
        alone = ["unshare", "--pid", "--fork", "--kill-child=KILL", "--"]
        self.start("nginx", *alone, *python, "livemount.boot", *root_option, "--address", HOST)
        self.start(
            "dnsmasq", "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--user=root", "--no-resolv",
            "--no-hosts", "--interface=br0", "--bind-interfaces", "--dhcp-range=10.97.0.0,static",
            f"--dhcp-host={MAC},{GUEST}", f"--address=/{BOOT_NAME}/{HOST}", "--log-facility=-",
            f"--dhcp-leasefile={root / 'leases'}", "--pid-file=",
        )  # fmt: skip
        self.wait(self._ready, "tgtd and nginx")

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """Start a program in the namespace; it ends with the bench."""
        log = self.processes.enter_context((self.root / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [*in_namespace(self.namespace), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        self.processes.callback(process.wait)
        self.processes.callback(process.kill)
        return process

    def _ready(self) -> bool:
        try:
            self.target.mounts()
        except LivemountError:
            return False
        words = ["curl", "--silent", "--fail", f"http://{HOST}/up"]
        return run(*words, namespace=self.namespace, check=False).returncode == 0

    def power_on(self, image: Path, firmware: Firmware) -> None:
        """Start the virtual machine from the image."""
        words = [
            "qemu-system-x86_64", "-machine", "q35,graphics=off", "-accel", "tcg", "-m", "256", "-vga", "none",
            "-display", "none", "-monitor", "none", "-serial", f"file:{self.console}",
            "-drive", f"file={image},format=raw,snapshot=on,if=none,id=image",
            "-device", "virtio-blk-pci,drive=image,bootindex=0",
            "-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no",
            "-device", f"virtio-net-pci,netdev=net,mac={MAC},romfile=",
        ]  # fmt: skip
        if firmware is Firmware.UEFI:
            shutil.copyfile(VARS, self.root / "vars.fd")
            words += ["-drive", f"if=pflash,format=raw,readonly=on,file={CODE}"]
            words += ["-drive", f"if=pflash,format=raw,file={self.root / 'vars.fd'}"]
        self.start("qemu", *words)

    def said(self) -> str:
        """What the console showed, without escapes and line breaks (it wraps at 80 columns)."""
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return re.sub(r"\x1b\[[0-9;=?]*[A-Za-z]|[\r\n\0]", "", text)

    def wait(self, what: Callable[[], bool], name: str) -> None:
        """Wait until `what` holds; fails with the logs after the deadline."""
        deadline = time.monotonic() + DEADLINE
        while not what():
            if time.monotonic() > deadline:
                logs = [f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in self.root.glob("*.log")]
                raise AssertionError(f"{name}: not within {DEADLINE} s\n" + "\n".join(logs))
            time.sleep(0.2)


@contextmanager
def network(namespace: str) -> Iterator[None]:
    """A namespace with a bridge and the virtual machine's tap on it."""
    run("ip", "netns", "add", namespace)
    try:
        for words in (
            "link set lo up",
            "link add br0 type bridge forward_delay 0",
            f"address add {HOST}/24 dev br0",
            "link set br0 up",
            "tuntap add tap0 mode tap",
            "link set tap0 master br0 up",
        ):
            run("ip", *words.split(), namespace=namespace)
        yield
    finally:
        run("ip", "netns", "delete", namespace)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A running bench; gone without a trace afterwards."""
    namespace = f"lme-{os.getpid()}"
    with TemporaryDirectory(prefix="lme-") as folder, network(namespace), ExitStack() as processes:
        Path(folder).chmod(0o755)
        yield Bench(Path(folder), namespace, processes)


@pytest.fixture(scope="module")
def ipxe() -> Path:
    """Set-up's iPXE."""
    fetch(default_folder())
    return default_folder()


def boot_sector(text: str) -> bytes:
    """A boot sector that prints `text` by INT 10h and halts."""
    code = bytes.fromhex(
        "31c0 8ed8 8ec0 8ed0 bc007c"  # xor ax,ax; mov ds,es,ss,ax; mov sp,0x7c00
        "be407c"  # mov si,0x7c40
        "ac 84c0 7409"  # next: lodsb; test al,al; jz end
        "b40e bb0700 cd10 ebf2"  # mov ah,0x0e; mov bx,7; int 0x10; jmp next
        "f4 ebfd"  # end: hlt; jmp end
    )
    return (code.ljust(0x40, b"\0") + text.encode()).ljust(510, b"\0") + b"\x55\xaa"


@pytest.mark.parametrize("firmware", list(Firmware))
def test_the_image_boots_the_mount_of_its_address(bench: Bench, ipxe: Path, firmware: Firmware) -> None:
    """404 until the script is there; then script, login with CHAP, and the disk's own loader runs."""
    since = datetime.now(UTC)
    image = bake(ImageRequest(), bench.root / "images", ipxe)
    bench.power_on(image.path, firmware)
    bench.wait(lambda: bool(bench.boot.requests(GUEST, since)), "the fixed URL is asked for")
    bench.wait(lambda: f"no boot script for {GUEST} yet, trying again" in bench.said(), "the console tells of the 404")

    disk = bench.root / "pseudo.disk"
    if firmware is Firmware.BIOS:
        disk.write_bytes(boot_sector(STARTED) + bytes(16 << 20))
    else:
        inner = bench.root / "inner.ipxe"
        inner.write_text(f"#!ipxe\necho {STARTED}\nprompt\n")
        make_disk(ipxe / "ipxe.lkrn", ipxe / "ipxe.efi", inner, disk)
    chap = Chap(user=MOUNT, secret=new_secret())
    bench.target.create(TargetSpec(mount=MOUNT, backing_file=disk, initiator_address=GUEST, chap=chap))
    bench.boot.publish(
        BootScript(
            mount=MOUNT,
            address=GUEST,
            portal=HOST,
            target_iqn=target_iqn(MOUNT),
            initiator_iqn=initiator_iqn(MOUNT),
            chap=chap,
            firmware=firmware,
        )
    )
    bench.wait(lambda: bool(bench.target.sessions(MOUNT)), "the machine logs in")
    assert bench.target.sessions(MOUNT) == [Session(initiator=initiator_iqn(MOUNT), address=GUEST)]
    bench.wait(lambda: STARTED in bench.said(), "the pseudo-disk's loader runs")
    seen = [(request.kind, request.status) for request in bench.boot.requests(GUEST, since)]
    assert seen[0] == (RequestKind.SCRIPT, 404)
    assert seen[-1] == (RequestKind.SCRIPT, 200)
    assert "logged in, booting from the pseudo-disk" in bench.said()
    assert chap.secret not in bench.said()


def test_a_wrong_secret_is_told_on_the_console(bench: Bench, ipxe: Path) -> None:
    """The login is tried again, with a message; nobody is logged in."""
    disk = bench.root / "pseudo.disk"
    disk.write_bytes(bytes(1 << 20))
    chap = Chap(user=MOUNT, secret=new_secret())
    bench.target.create(TargetSpec(mount=MOUNT, backing_file=disk, initiator_address=GUEST, chap=chap))
    bench.boot.publish(
        BootScript(
            mount=MOUNT,
            address=GUEST,
            portal=HOST,
            target_iqn=target_iqn(MOUNT),
            initiator_iqn=initiator_iqn(MOUNT),
            chap=Chap(user=MOUNT, secret=new_secret()),
            firmware=Firmware.BIOS,
        )
    )
    image = bake(ImageRequest(), bench.root / "images", ipxe)
    bench.power_on(image.path, Firmware.BIOS)
    bench.wait(lambda: "cannot log in yet, trying again" in bench.said(), "the console tells of the refused login")
    assert bench.target.sessions(MOUNT) == []
