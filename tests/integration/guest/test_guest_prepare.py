"""Preparation of a real guest's disk: what it changes, that it changes it once, what it refuses, what it leaves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.guest import ROOT_START, build_guest
from livemount.core.errors import LivemountError, NotFoundError, UnsupportedError, UsageError
from livemount.core.machine import Firmware
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.guest.api import EditKind, GuestRequest
from livemount.guest.initrd.segments import MARK_LENGTH, read_mark
from livemount.guest.prepare import prepare
from livemount.guest.tools import GuestTools, fetch

pytestmark = pytest.mark.integration

BIOS = GuestRequest(firmware=Firmware.BIOS)
UEFI = GuestRequest(firmware=Firmware.UEFI)
MIB = 1024 * 1024


@pytest.fixture(scope="session")
def tools() -> GuestTools:
    """The tools guests get."""
    return fetch(GuestTools.default().folder)


@pytest.fixture(scope="session")
def built() -> Path:
    """A real guest's disk, not to be written to."""
    return build_guest(Settings().cache / "guests", cache=Settings().cache)


@pytest.fixture
def disk(built: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    run("cp", "--sparse=always", built, tmp_path / "disk.raw")
    return tmp_path / "disk.raw"


def debugfs(disk: Path, *commands: str, offset: int = ROOT_START) -> str:
    """Look at (or change) the root file system without mounting it."""
    text = "\n".join(commands) + "\n"
    return run("debugfs", "-w", "-f", "-", f"{disk}?offset={offset}", input=text).stdout


def cat(disk: Path, path: str, folder: Path) -> bytes:
    """A file's content."""
    copy = folder / "dumped"
    copy.unlink(missing_ok=True)
    debugfs(disk, f"dump {path} {copy}")
    return copy.read_bytes()


def initrd_of(disk: Path) -> str:
    """The path of the only initrd."""
    found = re.search(r"initrd\.img-\S+", debugfs(disk, "ls -l /boot"))
    assert found
    return f"/boot/{found[0]}"


def nothing_left(disk: Path) -> None:
    """No loop device, mount or scratch file of a preparation is there."""
    assert run("losetup", "--associated", disk).stdout == ""
    assert str(disk) not in Path("/proc/self/mountinfo").read_text()
    assert not list(Path("/mnt").glob("root"))


def refused(disk: Path, request: GuestRequest, tools: GuestTools, message: str) -> None:
    """The disk is refused with this message, and nothing is left."""
    with pytest.raises(UnsupportedError, match=message):
        prepare(disk, request, tools)
    nothing_left(disk)


def test_a_guest_is_prepared_once(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    path = initrd_of(disk)
    before = cat(disk, path, tmp_path)
    request = GuestRequest(firmware=Firmware.UEFI, up_url="http://192.0.2.1/up")
    report = prepare(disk, request, tools)
    assert report.family == "linux"
    assert report.system.startswith("Debian GNU/Linux 12")
    assert re.fullmatch(r"ext4 UUID=[0-9a-f-]{36} \(partition 3\)", report.root)
    assert report.firmware == [Firmware.BIOS, Firmware.UEFI]
    assert [f"/boot/initrd.img-{kernel}" for kernel in report.kernels] == [path]
    assert any(path in change for change in report.changes)
    nothing_left(disk)

    after = cat(disk, path, tmp_path)
    assert after.startswith(before)
    mark = read_mark(after[-MARK_LENGTH:])
    assert mark is not None
    assert mark[0] == len(before)
    # The last segment that has a file wins: ours is the first program, the guest's own is kept.
    appended = after[len(before) :].lstrip(b"\0")
    words = ["sh", "-c", "gzip -dcq | cpio -t --quiet"]
    listed = subprocess.run(words, input=appended, capture_output=True, check=False)
    assert b"livemount/root/sbin/iscsid\n" in listed.stdout
    assert debugfs(disk, "cat /usr/lib/livemount/up.url").endswith("http://192.0.2.1/up\n")
    assert "ExecStop=\n" in debugfs(disk, "cat /etc/systemd/system/networking.service.d/livemount.conf")
    wants = debugfs(disk, "ls -l /etc/systemd/system/multi-user.target.wants")
    assert "livemount-up.service" in wants

    edits = {edit.path: edit for edit in report.edits}
    assert len(edits) == len(report.edits)
    assert (edits[path].kind, edits[path].before, edits[path].after) == (EditKind.CHANGED, len(before), len(after))
    assert edits["/usr/lib/livemount/up.url"].diff.splitlines()[-1] == "+http://192.0.2.1/up"
    assert (report.initrd, report.network, report.warnings) == ("initramfs-tools", ("ifupdown",), ())

    again = prepare(disk, request, tools)
    assert (again.changes, again.edits) == ([], ())
    assert again.kernels == report.kernels
    assert cat(disk, path, tmp_path) == after
    run("e2fsck", "-fn", f"{disk}?offset={ROOT_START}")


def test_fstab_names_what_is_there(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    """What is on a further disk waits for the network; what is on none does not hold the boot."""
    data = tmp_path / "data.raw"
    with data.open("wb") as file:
        file.truncate(16 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-U", "5b2f6d3e-0000-4000-8000-000000000001", data)
    old = cat(disk, "/etc/fstab", tmp_path).decode()
    (tmp_path / "fstab").write_text(
        f"{old}UUID=5b2f6d3e-0000-4000-8000-000000000001 /data ext4 defaults 0 2\n/dev/sdq1 none swap sw 0 0\n"
    )
    debugfs(disk, "rm /etc/fstab", f"write {tmp_path}/fstab /etc/fstab")
    request = GuestRequest(firmware=Firmware.BIOS, other_disks=(data,))
    report = prepare(disk, request, tools)
    assert cat(disk, "/etc/fstab", tmp_path).decode().splitlines()[-2:] == [
        "UUID=5b2f6d3e-0000-4000-8000-000000000001 /data ext4 _netdev 0 2",
        "/dev/sdq1 none swap sw,nofail,x-systemd.device-timeout=10s 0 0",
    ]
    assert report.warnings == ("/etc/fstab: swap is on /dev/sdq1, which is in no disk of the copy: it will be missing",)
    (edit,) = [edit for edit in report.edits if edit.path == "/etc/fstab"]
    assert "-/dev/sdq1 none swap sw 0 0" in edit.diff.splitlines()
    assert prepare(disk, request, tools).changes == []


def test_an_interrupted_append_is_done_again(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    path = initrd_of(disk)
    before = cat(disk, path, tmp_path)
    (tmp_path / "half").write_bytes(before + b"\x1f\x8bhalf a segment")
    (tmp_path / "journal").write_text(f"{len(before)}\n")
    journal = path.replace("/boot/", "/boot/.") + ".livemount-journal"
    debugfs(disk, f"rm {path}", f"write {tmp_path}/half {path}", f"write {tmp_path}/journal {journal}")
    assert prepare(disk, BIOS, tools).kernels
    after = cat(disk, path, tmp_path)
    assert after.startswith(before)
    assert b"half a segment" not in after
    assert "journal" not in debugfs(disk, "ls /boot")


def test_an_initrd_made_anew_by_the_guest_is_left_alone(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    prepare(disk, BIOS, tools)
    tree = tmp_path / "tree"
    tree.mkdir()
    # The guest's own tool runs our hook, in a folder that is the guest's root.
    debugfs(disk, f"rdump / {tree}")
    kernel = initrd_of(disk).removeprefix("/boot/initrd.img-")
    (tree / "dev/null").unlink(missing_ok=True)
    run("mknod", "-m", "666", tree / "dev/null", "c", "1", "3")
    run("chroot", tree, "mkinitramfs", "-o", "/new.img", kernel)
    listed = run("chroot", tree, "lsinitramfs", "/new.img").stdout.splitlines()
    assert {"init", "livemount/init.original", "livemount/login", "livemount/root/sbin/iscsid"} <= set(listed)
    assert "livemount/modules/iscsi_tcp.ko" in listed
    run("chroot", tree, "unmkinitramfs", "/new.img", "/unpacked")
    main = tree / "unpacked/main" if (tree / "unpacked/main").exists() else tree / "unpacked"
    assert (main / "init").read_bytes() == (tree / "usr/lib/livemount/init").read_bytes()
    assert (main / "livemount/init.original").read_bytes() == (tree / "usr/share/initramfs-tools/init").read_bytes()
    order = (main / "livemount/modules/order").read_text().split()
    assert order.index("libiscsi.ko") < order.index("iscsi_tcp.ko")
    assert all((main / "livemount/modules" / name).is_file() for name in order)

    path = initrd_of(disk)
    debugfs(disk, f"rm {path}", f"write {tree}/new.img {path}")
    assert prepare(disk, BIOS, tools).changes == []


def test_the_fstab_names_no_devices(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    (tmp_path / "fstab").write_text("# kept\n/dev/vda3  / ext4 defaults 0 1\n\n/dev/vdb1 /data ext4 nofail 0 2\n")
    debugfs(disk, "rm /etc/fstab", f"write {tmp_path}/fstab /etc/fstab")
    report = prepare(disk, BIOS, tools)
    assert any("fstab" in change for change in report.changes)
    uuid = report.root.split("UUID=")[1].split()[0]
    expected = f"# kept\nUUID={uuid}  / ext4 defaults 0 1\n\n/dev/vdb1 /data ext4 nofail 0 2\n"
    assert cat(disk, "/etc/fstab", tmp_path).decode() == expected
    assert prepare(disk, BIOS, tools).changes == []


def test_an_mbr_guest_is_prepared(disk: Path, tools: GuestTools) -> None:
    with disk.open("rb") as file:
        code = file.read(440)
    run("sgdisk", "--gpttombr=1:2:3", disk)
    with disk.open("r+b") as file:
        file.write(code)
    report = prepare(disk, BIOS, tools)
    assert Firmware.BIOS in report.firmware
    assert report.kernels


def test_uefi_is_refused_without_a_loader(disk: Path, tools: GuestTools) -> None:
    run("mdel", "-i", f"{disk}@@{2 * MIB}", "::/EFI/BOOT/BOOTX64.EFI")
    refused(disk, UEFI, tools, "cannot boot under UEFI: its disk boots under BIOS")


def test_bios_is_refused_without_a_loader(disk: Path, tools: GuestTools) -> None:
    with disk.open("r+b") as file:
        file.write(bytes(440))
    refused(disk, BIOS, tools, "cannot boot under BIOS: its disk boots under UEFI")


def test_an_installed_efi_loader_is_made_the_removable_one(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    image = f"{disk}@@{2 * MIB}"
    run("mcopy", "-i", image, "::/EFI/BOOT/BOOTX64.EFI", tmp_path / "loader")
    run("mdeltree", "-i", image, "::/EFI/BOOT")
    run("mmd", "-i", image, "::/EFI/debian")
    run("mcopy", "-i", image, tmp_path / "loader", "::/EFI/debian/grubx64.efi")
    report = prepare(disk, UEFI, tools)
    assert any("EFI/debian/grubx64.efi" in change for change in report.changes)
    assert prepare(disk, UEFI, tools).changes == []


def test_a_guest_without_initrd_is_refused(disk: Path, tools: GuestTools) -> None:
    debugfs(disk, f"rm {initrd_of(disk)}")
    refused(disk, BIOS, tools, "has no initrd that can be prepared")


def test_a_link_out_of_the_guest_leads_nowhere(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    path = initrd_of(disk)
    secret = tmp_path / "secret"
    secret.write_bytes(b"the host's own")
    for target in (f"../../../../../../..{secret}", str(secret), f"/proc/self/root{secret}"):
        debugfs(disk, f"rm {path}", f"symlink {path} {target}")
        with pytest.raises(LivemountError):
            prepare(disk, BIOS, tools)
    assert secret.read_bytes() == b"the host's own"
    nothing_left(disk)


def test_units_are_not_written_through_links(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    debugfs(disk, f"symlink /usr/lib/livemount {outside}")
    with pytest.raises(LivemountError):
        prepare(disk, BIOS, tools)
    assert list(outside.iterdir()) == []
    nothing_left(disk)


def test_a_full_file_system_is_refused_and_unchanged(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    path = initrd_of(disk)
    before = cat(disk, path, tmp_path)
    free = re.search(r"Free blocks:\s+(\d+)", run("dumpe2fs", "-h", f"{disk}?offset={ROOT_START}").stdout)
    assert free
    run("tune2fs", "-r", "0", f"{disk}?offset={ROOT_START}")
    (tmp_path / "filler").touch()
    debugfs(disk, f"write {tmp_path}/filler /filler", f"fallocate /filler 0 {int(free[1]) - 2000}")
    refused(disk, BIOS, tools, "no space in /boot")
    assert cat(disk, path, tmp_path) == before


def made(tmp_path: Path, make: Callable[[Path], None]) -> Path:
    """A disk with one partition, made by a program that writes a file."""
    part, disk = tmp_path / "part", tmp_path / "made.raw"
    with part.open("wb") as file:
        file.truncate(400 * MIB)
    make(part)
    with disk.open("wb") as file:
        file.truncate(402 * MIB)
    run("sgdisk", "-n", "1:2048:+400M", disk)
    run("dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse", "status=none")
    return disk


def luks(path: Path) -> None:
    """The header of a LUKS 1 volume (cryptsetup's on-disk format, figure 1)."""
    with path.open("r+b") as file:
        file.write(b"LUKS\xba\xbe\0\1")
        file.seek(168)
        file.write(b"6c697665-6d6f-4e74-8000-000000000003")


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda path: run("mkfs.xfs", "-q", path), "partition 1 is xfs"),
        (lambda path: run("mkfs.btrfs", "-q", path), "partition 1 is btrfs"),
        (lambda path: run("mke2fs", "-q", "-t", "ext4", path), "partition 1 is ext4"),
        (luks, "partition 1 is LUKS encryption"),
        (lambda _: None, "partition 1 is of no known kind"),
    ],
)
def test_a_disk_without_a_known_root_is_refused(
    make: Callable[[Path], None], seen: str, tmp_path: Path, tools: GuestTools
) -> None:
    refused(made(tmp_path, make), BIOS, tools, seen)


def test_a_disk_without_partition_table_is_refused(tmp_path: Path, tools: GuestTools) -> None:
    disk = tmp_path / "empty.raw"
    with disk.open("wb") as file:
        file.truncate(MIB)
    refused(disk, BIOS, tools, "no partition table")


def test_bad_requests(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        prepare(tmp_path / "missing.raw", BIOS, tools)
    with pytest.raises(NotFoundError, match="tools"):
        prepare(disk, BIOS, GuestTools(tmp_path / "no-tools"))
    for url in ("ftp://a/up", "http://a/$(reboot)", "http://a/b\nExecStart=/bin/sh"):
        with pytest.raises(UsageError, match="plain HTTP"):
            prepare(disk, GuestRequest(firmware=Firmware.BIOS, up_url=url), tools)


def test_a_killed_preparation_leaves_nothing(disk: Path, tools: GuestTools, tmp_path: Path) -> None:
    job = {"disk": str(disk), "request": BIOS.model_dump(mode="json"), "tools": str(tools.folder)}
    words = ["unshare", "--mount", "--propagation", "private", sys.executable, "-m", "livemount.guest.worker"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as worker:
        assert worker.stdin
        worker.stdin.write(json.dumps(job))
        worker.stdin.close()
        deadline = time.monotonic() + 60
        while not run("losetup", "--associated", disk).stdout:
            assert worker.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
        worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while run("losetup", "--associated", disk).stdout:
        assert time.monotonic() < deadline, "the loop device stays"
        time.sleep(0.05)
    nothing_left(disk)
    report = prepare(disk, BIOS, tools)
    assert report.kernels
    assert cat(disk, initrd_of(disk), tmp_path)[-MARK_LENGTH:-1]
