"""A tree of files becomes a disk: the kernel finds in it what was in the tree, and e2fsck nothing to complain of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from livemount.core.errors import DeniedError, LivemountError, NotFoundError, UsageError
from livemount.core.machine import DiskKind, Firmware
from livemount.core.run import run
from livemount.core.secrets import write_secret
from livemount.guest.disk import bootable, read_disk
from livemount.media import open_source
from livemount.media.files.layout import ROOT_START
from livemount.media.registry import SourceUri
from livemount.media.repository import Repository
from tests.support.trees import dump, facts, mounted, write_tree

pytestmark = pytest.mark.integration


def restic_backup(repository: Path, password: Path, tree: Path) -> str:
    """Back a tree up with the real restic, and return the URI of its disk."""
    env = {**os.environ, "RESTIC_REPOSITORY": str(repository), "RESTIC_PASSWORD_FILE": str(password)}
    if not repository.exists():
        run("restic", "init", "--no-cache", env=env)
    run("restic", "backup", "--no-cache", "--quiet", tree, env=env)
    snapshot = sorted((repository / "snapshots").iterdir(), key=lambda path: path.stat().st_mtime_ns)[-1].name
    return str(SourceUri("files", repository, {"snapshot": snapshot, "path": str(tree)}))


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
    assert "No problems found" in run("sgdisk", "--verify", disk).stdout
    # Both by loaders of ours; the one for UEFI is where firmware looks that knows nothing of the disk.
    assert bootable(read_disk(disk)) == ([Firmware.BIOS, Firmware.UEFI], None)
    source.close()


def test_equal_trees_are_equal_disks(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    password = tmp_path / "password"
    write_secret(password, "secret")
    uri = restic_backup(tmp_path / "repository", password, tree)
    one, other = open_source(uri, password), open_source(uri, password)
    assert one.identity == other.identity
    assert list(one.extents(0, one.size)) == list(other.extents(0, other.size))
    assert one.read(0, 48 << 20) == other.read(0, 48 << 20)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    write_secret(tmp_path / "password", "secret")
    return Repository.init(tmp_path / "repository", tmp_path / "password")


def test_a_copy_of_files_is_a_disk_and_a_tree_for_restic(repository: Repository, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    password = tmp_path / "password"
    made = repository.make_files(tree, "web01", tags=["nightly"])
    copy = repository.find("web01")
    assert copy == made.copy
    assert copy.description.disks[0].kind is DiskKind.FILES
    source = open_source(copy.source, password)
    disk = dump(source, tmp_path / "disk.raw")
    source.close()
    assert_sound(disk)
    expected = {name: told for name, told in facts(tree).items() if not name.startswith("dev/")}
    with mounted(disk, ROOT_START, tmp_path / "mnt") as root:
        assert facts(root) == expected
    env = {**os.environ, "RESTIC_REPOSITORY": str(repository.path), "RESTIC_PASSWORD_FILE": str(password)}
    run("restic", "check", "--no-cache", "--read-data", env=env)
    run("restic", "restore", "--no-cache", "latest", "--target", tmp_path / "restored", env=env)
    restored = facts(tmp_path / "restored/web01/files0")
    # restic restores no sockets.
    del expected["srv/socket"]
    assert restored == expected


def test_what_did_not_change_is_not_read_again(repository: Repository, tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    first = repository.make_files(tree, "web01")
    assert first.read > 60 << 20
    (tree / "etc/hostname").write_text("changed\n")
    second = repository.make_files(tree, "web01")
    # Both names of it.
    assert second.read == 2 * len("changed\n")
    source = open_source(second.copy.source, tmp_path / "password")
    with mounted(dump(source, tmp_path / "disk.raw"), ROOT_START, tmp_path / "mnt") as root:
        assert facts(root) == {name: told for name, told in facts(tree).items() if not name.startswith("dev/")}
    source.close()


def test_what_is_no_folder_is_told(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError):
        repository.make_files(tmp_path / "file", "web01")
    with pytest.raises(NotFoundError):
        repository.make_files(tmp_path / "absent", "web01")
    assert repository.copies() == []


def test_what_is_not_there_and_wrong_passwords(repository: Repository, tmp_path: Path) -> None:
    write_tree(tmp_path / "tree")
    copy = repository.make_files(tmp_path / "tree", "web01").copy
    wrong = tmp_path / "wrong"
    write_secret(wrong, "other")
    cases: list[tuple[str, Path | None, type[LivemountError]]] = [
        (copy.source.replace("files0", "files1"), tmp_path / "password", NotFoundError),
        (copy.source, wrong, DeniedError),
        (copy.source, None, DeniedError),
        (copy.source + "&more=1", tmp_path / "password", UsageError),
    ]
    for uri, password, kind in cases:
        with pytest.raises(kind):
            open_source(uri, password)
