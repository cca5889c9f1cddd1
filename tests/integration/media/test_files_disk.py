"""A tree of files becomes a disk: the kernel finds in it what was in the tree, and e2fsck nothing to complain of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from livemount.core.run import run
from livemount.core.secrets import write_secret
from livemount.media import Source, open_source
from livemount.media.files.layout import ROOT_START
from livemount.media.registry import SourceUri
from tests.support.trees import facts, mounted, write_tree

pytestmark = pytest.mark.integration


def restic_backup(repository: Path, password: Path, tree: Path) -> str:
    """Back a tree up with the real restic, and return the URI of its disk."""
    env = {**os.environ, "RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD_FILE": str(password)}
    if not repository.exists():
        run("restic", "init", "--no-cache", env=env)
    run("restic", "backup", "--no-cache", "--quiet", tree, env=env)
    snapshot = sorted((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)[-1].name
    return str(SourceUri("files", repository, {"snapshot": snapshot, "path": str(tree)}))


def dump(source: Source, target: Path) -> Path:
    """Write what is no hole of a source into a file."""
    with target.open("wb") as file:
        file.truncate(source.size)
        for extent in source.extents(0, source.size):
            if not extent.hole:
                os.pwrite(file.fileno(), source.read(extent.offset, extent.length), extent.offset)
    return target


def assert_sound(disk: Path) -> None:
    """What e2fsck says of the root file system."""
    run("e2fsck", "-f", "-n", f"{disk}?offset={ROOT_START}")


def test_a_tree_that_restic_backed_up_is_a_file_system(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    password = tmp_path / "password"
    write_secret(password, "secret")
    uri = restic_backup(tmp_path / "repository", password, tree)
    source = open_source(uri, password)
    disk = dump(source, tmp_path / "disk.raw")
    assert_sound(disk)
    with mounted(disk, ROOT_START, tmp_path / "mnt") as root:
        expected = facts(tree)
        # restic keeps no sockets.
        del expected["srv/socket"]
        assert facts(root) == expected
        free = os.statvfs(root)
        assert free.f_bavail * free.f_frsize > 900 << 20
    assert "pmbr" in run("sgdisk", "--print", disk).stdout.lower() or run("sgdisk", "--verify", disk)
    source.close()


def test_equal_trees_are_equal_disks(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    password = tmp_path / "password"
    write_secret(password, "secret")
    uri = restic_backup(tmp_path / "repository", password, tree)
    one, other = open_source(uri, password), open_source(uri, password)
    assert one.identity == other.identity
    assert list(one.extents(0, one.size)) == list(other.extents(0, other.size))
    assert one.read(0, 64 << 20) == other.read(0, 64 << 20)
