"""Baking the machine image with the real Packer, GRUB, mtools and iPXE."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from livemount.core.errors import LivemountError
from livemount.core.run import run
from livemount.image.api import ImageRequest
from livemount.image.bake import bake
from livemount.image.ipxe import default_folder, fetch

pytestmark = pytest.mark.integration


@pytest.fixture(scope="session")
def ipxe() -> Path:
    """Set-up's iPXE."""
    fetch(default_folder())
    return default_folder()


def test_an_unchanged_request_is_not_baked_again(tmp_path: Path, ipxe: Path) -> None:
    """The second call returns the same file, untouched."""
    first = bake(ImageRequest(), tmp_path, ipxe)
    before = first.path.stat()
    second = bake(ImageRequest(), tmp_path, ipxe)
    assert second == first
    assert second.path.stat() == before or second.path.stat().st_mtime_ns == before.st_mtime_ns
    assert first.path == tmp_path / f"{first.digest}.raw"
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.digest
    assert first.path.stat().st_mode & 0o777 == 0o444
    assert not list(tmp_path.glob("bake-*"))


def test_equal_input_gives_equal_bytes(tmp_path: Path, ipxe: Path) -> None:
    """Baked twice in two places, at two times."""
    assert bake(ImageRequest(), tmp_path / "a", ipxe).digest == bake(ImageRequest(), tmp_path / "b", ipxe).digest


def test_another_url_gives_another_image(tmp_path: Path, ipxe: Path) -> None:
    """And the image holds that URL."""
    plain = bake(ImageRequest(), tmp_path, ipxe)
    other = bake(ImageRequest(boot_url="http://10.1.2.3:8080/boot"), tmp_path, ipxe)
    assert other.digest != plain.digest
    offset = 2048 * 512
    script = run("mtype", "-i", f"{other.path}@@{offset}", "::autoexec.ipxe").stdout
    assert "chain http://10.1.2.3:8080/boot " in script
    run("sgdisk", "--verify", other.path)


def test_a_damaged_image_is_baked_again(tmp_path: Path, ipxe: Path) -> None:
    """The digest is checked, not only the name."""
    first = bake(ImageRequest(), tmp_path, ipxe)
    first.path.chmod(0o644)
    with first.path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    again = bake(ImageRequest(), tmp_path, ipxe)
    assert hashlib.sha256(again.path.read_bytes()).hexdigest() == again.digest == first.digest


def test_a_failing_packer_is_an_error_with_its_words(
    tmp_path: Path, ipxe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GRUB missing inside the build: no image, no half-written file, the reason in the message."""
    folder = tmp_path / "ipxe"
    folder.mkdir()
    (folder / "ipxe.lkrn").write_bytes(b"\0" * (20 << 20))  # does not fit into the ESP
    (folder / "ipxe.efi").write_bytes(b"")
    with pytest.raises(LivemountError, match="Packer could not bake"):
        bake(ImageRequest(), tmp_path / "images", folder)
    assert {path.name for path in (tmp_path / "images").iterdir()} == {".lock"}
