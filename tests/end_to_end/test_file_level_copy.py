"""A machine boots from a copy of its files: the disk that it finds was never one."""

from __future__ import annotations

import pytest

from demo.guest import build_guest
from livemount.core.machine import Firmware
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.mark.parametrize("firmware", list(Firmware))
def test_a_guest_boots_from_its_files(clean_site: Site, firmware: Firmware) -> None:
    site = clean_site
    disk = build_guest(site.settings.cache / "guests", hostname="web01", cache=site.settings.cache)
    site.run("backup", "--files", str(disk), "--name", "files01", "--memory", "768", "--firmware", firmware)
    said = site.run("mount", "files01", "--name", "files", "--boot-timeout", "15m")
    assert "has reached multi-user" in said
    guest = site.console("files")
    assert guest.command("hostname", 60).strip() == "web01"
    assert guest.command("cat /sys/class/iscsi_session/*/targetname", 60).strip().endswith(":files")
    assert "ext4" in guest.command("findmnt --noheadings --output SOURCE,FSTYPE /", 60)
    under = guest.command("test -d /sys/firmware/efi && echo uefi || echo bios", 60).strip()
    assert under == firmware
    site.run("unmount", "files")
    site.assert_nothing_left()
