"""The copies that cold reads come from: one image in a restic repository of ours, and in a borg repository."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.hits import make_image
from bench.rig import Rig, need, wait_for
from livemount.core.machine import MachineDescription
from livemount.core.run import run
from livemount.core.secrets import new_secret
from livemount.media.registry import SourceUri
from livemount.media.repository import Repository

NAME = "cold"
ARCHIVE = "copy"


@dataclass(frozen=True)
class Copies:
    """Both repositories below `folder`, which may be a delayed view of the true one."""

    folder: Path
    source: str
    """The copy as a source's URI."""
    password_file: Path
    cache: Path

    @property
    def image_file(self) -> str:
        """The image's path within the restic snapshot."""
        return SourceUri.parse(self.source).options["file"]

    @property
    def snapshot(self) -> str:
        """The restic snapshot."""
        return SourceUri.parse(self.source).options["snapshot"]

    def moved(self, folder: Path) -> Copies:
        """The same copies seen through another folder."""
        source = self.source.replace(str(self.folder), str(folder), 1)
        return Copies(folder=folder, source=source, password_file=self.password_file, cache=self.cache)

    @property
    def restic(self) -> list[str]:
        """The words that begin a restic command."""
        where = ["--repo", str(self.folder / "restic"), "--password-file", str(self.password_file)]
        return ["restic", *where, "--no-lock", "--cache-dir", str(self.cache / "restic")]

    @property
    def borg_archive(self) -> str:
        """borg's name of the copy."""
        return f"{self.folder / 'borg'}::{ARCHIVE}"

    @property
    def environment(self) -> dict[str, str]:
        """borg's folders and answers."""
        return {
            **os.environ,
            "BORG_BASE_DIR": str(self.cache / "borg"),
            "BORG_PASSCOMMAND": f"cat {self.password_file}",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }


def make_copies(rig: Rig, size: int, *, borg: bool = True) -> Copies:
    """Back up a new image of random bytes with both programs."""
    password_file = rig.folder / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(new_secret())
    image, folder = rig.folder / "disk0.raw", rig.folder / "repositories"
    make_image(image, size)
    folder.mkdir()
    repository = Repository.init(folder / "restic", password_file)
    copy = repository.backup(image, NAME, MachineDescription())
    copies = Copies(folder=folder, source=copy.source, password_file=password_file, cache=rig.folder / "cache")
    if borg:
        need("borg")
        copies.cache.mkdir()
        run("borg", "init", "--encryption", "repokey", folder / "borg", env=copies.environment)
        run("borg", "create", copies.borg_archive, image.name, env=copies.environment, cwd=image.parent)
    image.unlink()
    return copies


def delay(rig: Rig, copies: Copies, seconds: float) -> Copies:
    """The copies behind a file system whose every read takes longer; the copies themselves for 0."""
    if not seconds:
        return copies
    view = rig.folder / f"delayed-{seconds}"
    view.mkdir()
    # Debian's Python, because pyfuse3 is a Debian package.
    program = Path(__file__).with_name("delayed.py")
    rig.start(view.name, "/usr/bin/python3", str(program), str(copies.folder), str(view), str(seconds))
    wait_for(view.is_mount, "the delayed folder is mounted")
    return copies.moved(view)
