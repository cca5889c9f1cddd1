"""A machine boots from what other programs made, as it is: images, and repositories of restic's and borg's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.guest import build_guest
from livemount.core.secrets import write_secret
from livemount.media.registry import SourceUri
from tests.support.foreign import PASSWORD, borg, restic, restic_snapshot
from tests.support.foreign_images import qemu_img
from tests.support.site import Site

pytestmark = [pytest.mark.end_to_end, pytest.mark.integration, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Foreign:
    """A source that others made."""

    uri: SourceUri
    files: Path
    """What it is made of: a file, or a folder."""
    secret: bool = False


def qcow2_chain(disk: Path, folder: Path) -> Foreign:
    """A qcow2 overlay on a raw disk that lies elsewhere."""
    overlay = folder / "web01.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", disk, "-F", "raw", overlay)
    return Foreign(SourceUri("image", overlay, {"backing": str(disk.parent)}), overlay)


def vmdk(disk: Path, folder: Path) -> Foreign:
    """A stream-optimised vmdk, as OVA exports have it: compressed."""
    image = folder / "web01.vmdk"
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=streamOptimized", disk, image)
    return Foreign(SourceUri("image", image, {}), image)


def restic_repository(disk: Path, folder: Path) -> Foreign:
    """A repository made by restic."""
    restic(folder, PASSWORD, "init")
    snapshot = restic_snapshot(restic(folder, PASSWORD, "backup", "--json", disk))
    repository = folder / "repository"
    return Foreign(SourceUri("restic", repository, {"snapshot": snapshot, "file": str(disk)}), repository, secret=True)


def borg_archive(disk: Path, folder: Path) -> Foreign:
    """A repository made by borg."""
    repository = folder / "repository"
    borg(folder, PASSWORD, "init", "--encryption=repokey", repository)
    borg(folder, PASSWORD, "create", "--compression=lz4", "--sparse", f"{repository}::night", disk)
    uri = SourceUri("borg", repository, {"archive": "night", "path": str(disk).lstrip("/")})
    return Foreign(uri, repository, secret=True)


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Names and digests of a file, or of the data files in a repository."""
    files = sorted(path.glob("data/**/*")) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            with file.open("rb") as opened:
                yield str(file), hashlib.file_digest(opened, "sha256").digest()


@pytest.mark.parametrize("make", [qcow2_chain, vmdk, restic_repository, borg_archive])
def test_a_guest_boots_from(make: Callable[[Path, Path], Foreign], clean_site: Site, tmp_path: Path) -> None:
    site = clean_site
    disk = build_guest(site.settings.cache / "guests", hostname="web01", cache=site.settings.cache)
    source = make(disk, tmp_path)
    before = dict(contents(source.files))
    assert before
    words = ["mount", "--source", str(source.uri), "--name", "foreign", "--memory", "768", "--boot-timeout", "15m"]
    if source.secret:
        write_secret(tmp_path / "password", PASSWORD)
        words += ["--password-file", str(tmp_path / "password")]
    said = site.run(*words)
    assert "has reached multi-user" in said
    guest = site.console("foreign")
    assert guest.command("hostname", 60).strip() == "web01"
    assert guest.command("cat /sys/class/iscsi_session/*/targetname", 60).strip().endswith(":foreign")
    site.run("unmount", "foreign")
    site.assert_nothing_left()
    assert dict(contents(source.files)) == before
