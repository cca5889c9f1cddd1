"""Boots prepared guests in QEMU from a real tgt with CHAP: iPXE, iBFT, login in the initrd, clean power-off."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from demo.guest import build_guest
from livemount.core.machine import Firmware
from livemount.core.run import in_namespace, run
from livemount.core.secrets import new_secret
from livemount.core.settings import Settings
from livemount.guest.api import GuestRequest
from livemount.guest.prepare import prepare
from livemount.guest.tools import GuestTools, fetch

pytestmark = [pytest.mark.integration, pytest.mark.end_to_end]

HOST = "10.79.0.1"
UP_URL = f"http://{HOST}:8080/up"
IQN = "iqn.2026-01.internal.livemount:test"
BOOT_SECONDS = 400
OVMF = Path("/usr/share/ovmf/OVMF.fd")


def wait_for(what: str, condition: Callable[[], object], seconds: float) -> None:
    """Poll a condition until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.1)


class Console:
    """A guest's serial console behind a unix socket."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(1)
        self.socket.connect(str(path))
        self.text = ""
        self.seen = 0

    def wait(self, pattern: str, seconds: float) -> re.Match[str]:
        """Read until the pattern comes up in what was not yet matched."""
        deadline = time.monotonic() + seconds
        while True:
            match = re.search(pattern, self.text[self.seen :], re.MULTILINE)
            if match:
                self.seen += match.end()
                return match
            assert time.monotonic() < deadline, (
                f"no {pattern!r} in {seconds} s; the console's end:\n{self.text[-3000:]}"
            )
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                continue
            assert data, f"the console ended before {pattern!r}:\n{self.text[-3000:]}"
            self.text += data.decode(errors="replace").replace("\r", "")

    def log_in(self) -> None:
        """Wait for root's shell, and make it speak plainly."""
        self.wait(r"root@\w+:~# ?", BOOT_SECONDS)
        self.socket.sendall(b"stty -echo; dmesg -n 1; PS1=; bind 'set enable-bracketed-paste off'\n")
        self.ask("true")

    def ask(self, command: str, seconds: float = 120) -> str:
        """Run a command in the guest; its output. It must succeed."""
        token = secrets.token_hex(4)
        self.socket.sendall(f"echo begin-{token}; {command}; echo end-{token}-$?\n".encode())
        # What was typed may be echoed: it has no line end after the first token, and no number after the second.
        match = self.wait(rf"begin-{token}\n((?:.|\n)*?)^end-{token}-(\d+)", seconds)
        assert match[2] == "0", f"{command}: {match[1]}"
        return match[1].strip()


class Lab:
    """A network namespace with a bridge, DHCP, an HTTP server, tgt, and a tap for one guest."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.stack = stack
        self.namespace = f"lmg-{secrets.token_hex(3)}"
        self.secret = new_secret(16)
        self.environment = {**os.environ, "TGT_IPC_SOCKET": str(folder / "tgt.sock")}
        run("ip", "netns", "add", self.namespace)
        stack.callback(run, "ip", "netns", "delete", self.namespace)
        for words in (
            "ip link set lo up",
            "ip link add br0 type bridge",
            f"ip addr add {HOST}/24 dev br0",
            "ip tuntap add tap0 mode tap",
            "ip link set tap0 master br0 up",
            "ip link set br0 up",
        ):
            run(*words.split(), namespace=self.namespace)
        self.start(
            *("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--leasefile-ro"),
            *("--interface=br0", "--bind-interfaces", "--no-resolv", "--no-hosts", "--address=/lab.internal/10.79.0.1"),
            *("--dhcp-range=10.79.0.10,10.79.0.99",),
        )
        site = folder / "site"
        site.mkdir()
        (site / "up").touch()
        self.start("python3", "-u", "-m", "http.server", "--bind", HOST, "--directory", str(site), "8080", log="http")

    def start(self, *words: str, log: str | None = None) -> subprocess.Popen[bytes]:
        """Start a program in the namespace; it ends with the lab."""
        with (self.folder / f"{log or words[0]}.log").open("ab") as file:
            process = subprocess.Popen(
                [*in_namespace(self.namespace), *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=self.environment,
            )
        self.stack.callback(self.stop, process)
        return process

    @staticmethod
    def stop(process: subprocess.Popen[bytes]) -> None:
        """End a program of the lab."""
        process.kill()
        process.wait()

    def serve(self, disk: Path) -> subprocess.Popen[bytes]:
        """Export a disk file as LUN 1 to whoever knows the secret."""
        target = self.start("tgtd", "-f", "--iscsi", f"portal={HOST}:3260")

        def tgtadm(*words: str) -> bool:
            arguments = ("tgtadm", "--lld", "iscsi", *words)
            return run(*arguments, env=self.environment, check=False).returncode == 0

        wait_for("tgtd", lambda: tgtadm("--op", "show", "--mode", "system"), 30)
        for words in (
            f"--op new --mode target --tid 1 -T {IQN}",
            f"--op new --mode account --user test --password {self.secret}",
            "--op bind --mode account --tid 1 --user test",
            f"--op new --mode logicalunit --tid 1 --lun 1 -b {disk}",
            "--op bind --mode target --tid 1 -I ALL",
        ):
            assert tgtadm(*words.split()), words
        return target

    def boot(self, firmware: Firmware, ipxe: Path, card: str = "virtio-net-pci") -> subprocess.Popen[bytes]:
        """Start a virtual machine that has nothing but iPXE and its script."""
        script = self.folder / "script.ipxe"
        script.write_text(
            "#!ipxe\n"
            "dhcp\n"
            f"set initiator-iqn {IQN}.guest\n"
            "set username test\n"
            f"set password {self.secret}\n"
            "set keep-san 1\n"
            f"sanboot --drive 0x80 iscsi:{HOST}:::1:{IQN}\n"
        )
        if firmware == Firmware.BIOS:
            start = ["-kernel", str(ipxe / "ipxe.lkrn"), "-initrd", str(script)]
        else:
            stick = self.folder / "stick.img"
            with stick.open("wb") as file:
                file.truncate(8 << 20)
            run("mkfs.vfat", stick)
            run("mmd", "-i", stick, "::/EFI", "::/EFI/BOOT")
            run("mcopy", "-i", stick, ipxe / "ipxe.efi", "::/EFI/BOOT/BOOTX64.EFI")
            run("mcopy", "-i", stick, script, "::/autoexec.ipxe")
            start = ["-bios", str(OVMF), "-drive", f"file={stick},format=raw,if=virtio,readonly=on"]
        return self.start(
            *("qemu-system-x86_64", "-machine", "pc", "-accel", "tcg", "-m", "1024", "-display", "none", "-no-reboot"),
            *("-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no"),
            *("-device", f"{card},netdev=net,romfile=,mac=52:54:00:79:00:01"),
            *("-chardev", f"socket,id=serial,path={self.folder}/console.sock,server=on,wait=off"),
            *("-serial", "chardev:serial", "-monitor", "none"),
            *start,
        )

    def console(self) -> Console:
        """The running machine's console."""
        path = self.folder / "console.sock"
        wait_for("QEMU's console", path.exists, 30)
        console = Console(path)
        self.stack.callback(console.socket.close)
        return console

    def asked_up(self) -> bool:
        """Whether a guest has said that it is up."""
        return "GET /up" in (self.folder / "http.log").read_text()


@contextmanager
def lab(folder: Path) -> Iterator[Lab]:
    """A lab, until the block ends."""
    with ExitStack() as stack:
        yield Lab(folder, stack)


@pytest.fixture(scope="session")
def tools() -> GuestTools:
    """The tools guests get."""
    return fetch(GuestTools.default().folder)


@pytest.fixture(scope="session")
def ipxe() -> Path:
    """The iPXE of Debian trixie (bookworm's is too old), unpacked in the cache; the machine's apt is left alone."""
    folder = Settings().cache / "test-ipxe"
    programs = folder / "usr/lib/ipxe"
    if (programs / "ipxe.efi").exists():
        return programs
    work = folder.with_suffix(".new")
    shutil.rmtree(work, ignore_errors=True)
    for name in ("sources", "lists", "cache"):
        (work / name).mkdir(parents=True)
    told = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Origin: Debian")
    ).stdout
    uri = next(line.split()[0] for line in told.splitlines() if line.endswith(" bookworm"))
    (work / "sources/trixie.list").write_text(f"deb {uri} trixie main\n")
    settings = {
        "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": work / "sources",
        "Dir::State::lists": work / "lists",
        "Dir::Cache": work / "cache",
        "APT::Sandbox::User": "root",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    run("apt-get", *options, "update", cwd=work)
    run("apt-get", *options, "download", "ipxe", cwd=work)
    run("dpkg", "-x", next(work.glob("ipxe_*.deb")), work)
    work.rename(folder)
    return programs


def prepared(folder: Path, tools: GuestTools, firmware: Firmware, *, networkd: bool = False) -> Path:
    """A copy of a real guest's disk, prepared."""
    name = "db01" if networkd else "web01"
    built = build_guest(Settings().cache / "guests", hostname=name, cache=Settings().cache, networkd=networkd)
    disk = folder / "disk.raw"
    run("cp", "--sparse=always", built, disk)
    prepare(disk, GuestRequest(firmware=firmware, up_url=UP_URL), tools)
    return disk


def check_root_is_iscsi(console: Console) -> None:
    """Ask the guest what it stands on."""
    device = console.ask("findmnt -no SOURCE /").removeprefix("/dev/")
    assert re.fullmatch(r"sd[a-z]3", device)
    assert "/session" in console.ask(f"readlink -f /sys/class/block/{device[:-1]}/device")
    assert console.ask("cat /sys/class/iscsi_session/session*/recovery_tmo") in ("off", "-1")
    assert console.ask("grep -lz '^@iscsid' /proc/[0-9]*/cmdline").count("/proc/") == 1


@pytest.mark.parametrize("firmware", list(Firmware))
def test_a_prepared_guest_boots_and_powers_off(
    firmware: Firmware, tmp_path: Path, tools: GuestTools, ipxe: Path
) -> None:
    disk = prepared(tmp_path, tools, firmware)
    with lab(tmp_path) as place:
        place.serve(disk)
        machine = place.boot(firmware, ipxe)
        console = place.console()
        console.log_in()
        wait_for("the guest's word that it is up", place.asked_up, BOOT_SECONDS)
        assert console.ask("hostname") == "web01"
        check_root_is_iscsi(console)
        assert console.ask("systemctl is-active networking.service livemount-network.service") == "active\nactive"
        assert console.ask("getent hosts lab.internal").startswith(HOST)
        console.ask("echo written-in-the-guest >/root/proof && sync")
        console.socket.sendall(b"poweroff\n")
        console.wait("reboot: Power down", BOOT_SECONDS)
        assert machine.wait(60) == 0
    assert run("debugfs", "-R", "cat /root/proof", f"{disk}?offset={50 << 20}").stdout == "written-in-the-guest\n"


def test_the_root_disk_outlives_its_target(tmp_path: Path, tools: GuestTools, ipxe: Path) -> None:
    """With systemd-networkd; the target is killed, stays away for longer than a SCSI command may take, and is back."""
    disk = prepared(tmp_path, tools, Firmware.BIOS, networkd=True)
    with lab(tmp_path) as place:
        target = place.serve(disk)
        machine = place.boot(Firmware.BIOS, ipxe)
        console = place.console()
        console.log_in()
        wait_for("the guest's word that it is up", place.asked_up, BOOT_SECONDS)
        check_root_is_iscsi(console)
        wait_for("networkd", lambda: "routable" in console.ask("networkctl --no-legend list eth0"), 120)
        place.stop(target)
        console.ask("(dd if=/dev/urandom of=/root/big bs=1M count=4 && sync && md5sum </root/big >/root/sum) & true")
        # The time itself is what is tested: the target is away.
        time.sleep(40)
        place.serve(disk)
        console.ask("wait && sync && echo 3 >/proc/sys/vm/drop_caches", 300)
        assert console.ask("md5sum </root/big") == console.ask("cat /root/sum")
        assert "I/O error" not in console.ask("dmesg")
        console.socket.sendall(b"poweroff\n")
        console.wait("reboot: Power down", BOOT_SECONDS)
        assert machine.wait(60) == 0
