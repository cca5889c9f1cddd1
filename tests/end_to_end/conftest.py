"""The environment that all end-to-end tests share: own home, own namespaces, a real guest in a repository."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import leftovers
from demo.guest import build_guest
from livemount.core.run import run
from livemount.core.settings import Settings
from tests.support.site import Site

DATA_UUID = "7d3c4b52-8a2e-4c53-9d0b-2f3a1c9e5b10"


def data_disk(folder: Path) -> Path:
    """A disk without partitions: a file system with one file."""
    content, disk = folder / "content", folder / "data.raw"
    content.mkdir()
    (content / "hello").write_text("from the second disk\n")
    run("mke2fs", "-q", "-t", "ext4", "-U", DATA_UUID, "-d", content, disk, "16M")
    return disk


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    """An environment for all end-to-end tests of a run; torn down and checked to be gone."""
    home = Path(tempfile.mkdtemp(prefix="lm-e2e-", dir="/var/tmp"))
    home.chmod(0o711)  # the boot server's worker has to reach its scripts
    settings = Settings(home=home, environment=f"s{os.getpid() % 1_000_000}")
    site = Site(settings)
    try:
        image = build_guest(settings.cache / "guests", hostname="web01", cache=settings.cache)
        site.run("repository", "init")
        site.run("backup", str(image), "--name", "web01", "--memory", "768")
        data = data_disk(home)
        two = [str(data), str(image), "--boot", "1"]
        site.run("backup", *two, "--name", "web02", "--memory", "768", "--firmware", "uefi")
        site.run("environment", "up")
        yield site
        site.end_all()
    finally:
        site.run("environment", "down")
        left = {kind: names for kind, names in leftovers.of_environment(site.paths).items() if names}
        shutil.rmtree(home)
        assert not left, left


@pytest.fixture
def clean_site(site: Site) -> Iterator[Site]:
    """The environment with no mount in it, before and after."""
    site.end_all()
    site.assert_nothing_left()
    yield site
    site.assert_nothing_left()
