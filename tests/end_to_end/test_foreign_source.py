"""A machine boots from an image that is in no repository: a qcow2 overlay on a raw disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from demo.guest import build_guest
from tests.support.foreign_images import qemu_img
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_guest_boots_from_a_qcow2_chain(clean_site: Site, tmp_path: Path) -> None:
    site = clean_site
    disk = build_guest(site.settings.cache / "guests", hostname="web01", cache=site.settings.cache)
    overlay = tmp_path / "web01.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
    before = hashlib.sha256(overlay.read_bytes()).digest()
    source = f"image://{overlay}?backing={disk.parent}"
    said = site.run("mount", "--source", source, "--name", "chain", "--memory", "768", "--boot-timeout", "15m")
    assert "has reached multi-user" in said
    guest = site.console("chain")
    assert guest.command("hostname", 60).strip() == "web01"
    assert guest.command("cat /sys/class/iscsi_session/*/targetname", 60).strip().endswith(":chain")
    site.run("unmount", "chain")
    site.assert_nothing_left()
    assert hashlib.sha256(overlay.read_bytes()).digest() == before
