"""The main job: a copy boots as a machine, under BIOS and UEFI, lives through kills, and is gone without a trace."""

from __future__ import annotations

import os
import signal

import pytest

from demo import leftovers
from livemount.media.repository import Repository
from tests.end_to_end.conftest import DATA_UUID
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(1500)]


def digest(site: Site, reference: str, disk: int = 0) -> str:
    repository = Repository.open(site.settings.repository_path, site.settings.repository_password)
    return repository.digest(repository.find(reference), disk)


def test_bios_guest_lives_through_kills(clean_site: Site) -> None:
    site = clean_site
    before = digest(site, "web01")
    said = site.run("mount", "web01", "--name", "bios", "--ttl", "30m", "--boot-timeout", "15m")
    for step in ("boot script fetched", "logged in", "has reached multi-user", "recalled"):
        assert step in said, said

    guest = site.console("bios")
    assert guest.command("hostname", 60).strip() == "web01"
    assert guest.command("cat /sys/class/iscsi_session/*/targetname", 60).strip().endswith(":bios")
    root = guest.command("readlink -f /sys/class/block/$(basename $(findmnt -n -o SOURCE /))", 60)
    assert "/session" in root
    mount = site.mount("bios")
    stats = mount["disk"]["stats"]
    assert 0 < stats["recalled_bytes"] < mount["order"]["copy"]["stored"]
    assert stats["private_bytes"] > 0

    # The script holds the secret: after the login nobody gets it any more.
    assert leftovers.of_mounts(site.paths)["boot scripts"] == []

    # Each part is killed while the guest writes; the guest's data must be what it wrote.
    guest.command("dd if=/dev/urandom of=/root/data bs=1M count=16 2>/dev/null; sha256sum /root/data > /root/sum", 120)
    for victim in ("worker", "target", "driver", "boot", "api"):
        guest.command("(cp /root/data /root/copy && sync) >/dev/null 2>&1 &", 60)
        kill(site, victim)
        guest.command("sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum -c /root/sum", 240)
    errors = guest.command("dmesg | grep -ciE 'I/O error|EXT4-fs error|remounting' || true", 60).strip()
    assert errors == "0", guest.command("dmesg | tail -n 40", 60)

    site.run("unmount", "bios")
    assert site.mount("bios")["state"] == "ended"
    site.assert_nothing_left()
    assert digest(site, "web01") == before
    site.run("check", "--read-data")


def kill(site: Site, victim: str) -> None:
    """Kill -9 one part of the host and wait until it is back."""
    if victim == "worker":
        (pid,) = leftovers.workers(site.paths)
        os.kill(pid, signal.SIGKILL)
        site.wait_for(lambda: leftovers.workers(site.paths) not in ([], [pid]), "a new worker")
    else:
        pid = site.service(victim)
        os.kill(pid, signal.SIGKILL)
        site.wait_for_service(victim, pid)


def test_uefi_guest_restarts_and_sees_its_other_disk(clean_site: Site) -> None:
    """Its copy has the disk that it starts from as the second one."""
    site = clean_site
    before = [digest(site, "web02", disk) for disk in (0, 1)]
    site.run("mount", "web02", "--name", "uefi", "--ttl", "15m", "--boot-timeout", "15m")
    guest = site.console("uefi")
    assert guest.command("test -d /sys/firmware/efi && echo uefi", 60).strip() == "uefi"
    guest.command("echo kept > /root/kept", 60)
    luns = guest.command("ls -d /sys/class/iscsi_session/session*/device/target*/*:*:*:*/block/* | wc -l", 60)
    assert luns.strip() == "2"
    guest.command(f"mkdir /data; echo 'UUID={DATA_UUID} /data ext4 _netdev,nofail 0 2' >> /etc/fstab; sync", 60)
    assert len(site.mount("uefi")["disk"]["disks"]) == 2

    # A restart asks for the script again, and what was written is there.
    boot_id = guest.command("cat /proc/sys/kernel/random/boot_id", 60)
    guest.wait_for("Live mount: machine image", 10)
    guest.command("systemd-run --on-active=5 systemctl reboot", 60)
    guest.wait_for("Live mount: machine image", 300)
    guest.wait_for("root@web01", 600)
    assert guest.command("cat /proc/sys/kernel/random/boot_id", 60) != boot_id
    assert guest.command("cat /root/kept", 60).strip() == "kept"
    assert guest.command("cat /data/hello", 60).strip() == "from the second disk"
    assert guest.command("findmnt -n -o TARGET /data; echo new > /data/new; sync", 60).strip() == "/data"
    site.run("unmount", "uefi")
    site.assert_nothing_left()
    assert [digest(site, "web02", disk) for disk in (0, 1)] == before


def test_a_mount_ends_by_itself(clean_site: Site) -> None:
    site = clean_site
    site.run("mount", "web01", "--name", "short", "--ttl", "45s", "--no-wait")
    ended = site.wait_for_state("short", "ended", "failed")
    assert ended["state"] == "ended", ended
    assert "expired" in ended["reason"]
