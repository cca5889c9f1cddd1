"""A machine boots from a copy of its files: the disk that it finds was never one."""

from __future__ import annotations

from pathlib import Path

import pytest

from demo.guest import ROOT_START, build_guest
from tests.support.site import Site
from tests.support.trees import mounted

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_guest_boots_from_its_files(clean_site: Site, tmp_path: Path) -> None:
    site = clean_site
    disk = build_guest(site.settings.cache / "guests", hostname="web01", cache=site.settings.cache)
    with mounted(disk, ROOT_START, tmp_path / "mnt") as tree:
        site.run("backup", "--files", str(tree), "--name", "files01", "--memory", "768")
    said = site.run("mount", "files01", "--name", "files", "--boot-timeout", "15m")
    assert "has reached multi-user" in said
    guest = site.console("files")
    assert guest.command("hostname", 60).strip() == "web01"
    assert guest.command("cat /sys/class/iscsi_session/*/targetname", 60).strip().endswith(":files")
    assert "ext4" in guest.command("findmnt --noheadings --output SOURCE,FSTYPE /", 60)
    site.run("unmount", "files")
    site.assert_nothing_left()
