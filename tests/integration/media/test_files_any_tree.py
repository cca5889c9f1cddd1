"""Any tree that a file system can hold, backed up, synthesised and mounted again, is that tree."""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livemount.core.errors import LivemountError
from livemount.core.run import run
from livemount.core.secrets import write_secret
from livemount.media.repository import Repository
from livemount.media.sources.restic import open_repository
from tests.support.trees import dump, facts, mounted

pytestmark = pytest.mark.integration

MIB = 1 << 20
CHUNK = 512 << 10
NOW = 1_700_000_000_000_000_000


def usable(name: bytes) -> bool:
    return name not in (b".", b"..") and not {0, 47} & set(name)


NAMES = st.one_of(
    st.sampled_from(
        [b"\n", b"\xff\xfe", b"-rf", b" ", b"*", b"\\x41", b'"', b"\\", b"\x01\x7f", b"lost+found", b"n" * 255]
    ),
    st.binary(min_size=1, max_size=255).filter(usable),
    st.text("abc", min_size=1, max_size=3).map(str.encode),
)
TARGETS = st.one_of(
    st.sampled_from(
        [b".", b"..", b"/", b"loop", b"a", b"../../../../etc/passwd", b"\xff\n", b"t" * 59, b"t" * 60, b"t" * 4095]
    ),
    st.binary(min_size=1, max_size=100).filter(lambda target: 0 not in target),
)
PIECES = st.lists(st.tuples(st.integers(0, 20 * 4096), st.binary(min_size=1, max_size=50)), max_size=4)
SIZES = st.one_of(
    st.sampled_from([0, 1, 4095, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 9 * MIB]), st.integers(0, 3 * CHUNK)
)
ATTRIBUTES = st.dictionaries(
    st.tuples(st.sampled_from(["user.", "trusted."]), st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
    .map("".join)
    .filter(lambda name: "\0" not in name),
    st.binary(max_size=300),
    max_size=3,
)
FACTS = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "owners": st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 2**32 - 2)),
        "time": st.integers(-(2**31), 2**33).map(lambda seconds: seconds * 10**9 + abs(seconds) % 10**9),
    }
)
KINDS = st.sampled_from(["file", "file", "sparse", "folder", "folder", "symlink", "link", "pipe", "socket", "device"])
CONTENT = st.fixed_dictionaries({"size": SIZES, "pieces": PIECES, "target": TARGETS})
ENTRY = st.tuples(st.integers(0, 30), NAMES, KINDS, FACTS, CONTENT, ATTRIBUTES, st.integers(0, 2**32 - 1))
"""Which of the folders there are it is in, and what it is."""


def make(root: Path, entries: list[Any]) -> None:
    """Make a tree; what has the name of another, or no place, is left out."""
    folders, files, made = [root], list[Path](), list[tuple[Path, Any, Any]]()
    for place, name, kind, known, content, attributes, number in entries:
        path = folders[place % len(folders)] / os.fsdecode(name)
        if os.path.lexists(path) or len(os.fsencode(path)) > 3000 or (name == b"lost+found" and kind != "folder"):
            continue
        if kind == "folder":
            path.mkdir()
            folders.append(path)
        elif kind in ("file", "sparse"):
            with path.open("wb") as file:
                if kind == "sparse":
                    file.truncate(content["size"])
                else:
                    file.write((b"%d " % number * (content["size"] // 2 + 1))[: content["size"]])
                for offset, piece in content["pieces"]:
                    file.seek(offset)
                    file.write(piece)
            files.append(path)
        elif kind == "symlink":
            path.symlink_to(os.fsdecode(content["target"]))
        elif kind == "link":
            if files:
                os.link(files[number % len(files)], path, follow_symlinks=False)
            continue
        else:
            kinds = {"pipe": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": (stat.S_IFCHR, stat.S_IFBLK)[number % 2]}
            os.mknod(path, kinds[kind] | 0o600, os.makedev(number % 4096, number >> 12))
        made.append((path, known, attributes if kind in ("file", "sparse", "folder") else {}))
    for path, known, attributes in reversed(made):
        os.chown(path, *known["owners"], follow_symlinks=False)
        for attribute, value in attributes.items():
            os.setxattr(path, attribute.encode(), value, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(known["mode"])
        os.utime(path, ns=(NOW, known["time"]), follow_symlinks=False)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    folder = tmp_path_factory.mktemp("any")
    write_secret(folder / "password", "secret")
    return Repository.init(folder / "repository", folder / "password")


def assert_comes_back(repository: Repository, tree: Path) -> None:
    """Back a tree up, and compare it with what is mounted of the disk's file system."""
    folder = repository.path.parent
    copy = repository.make_files(tree, "web01").copy
    files = open_repository(repository.path, folder / "password").file_tree(copy.id, Path("/web01/files0"))
    (folder / "made").write_bytes(b"")
    files.write(folder / "made", 0, 0, bytes(range(16)), b"root", MIB, [], [])
    source = files.disk(folder / "made")
    disk = dump(source, folder / "disk.raw")
    source.close()
    run("e2fsck", "-f", "-n", disk)
    with mounted(disk, 0, folder / "mnt") as root:
        assert facts(root) == facts(tree)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(ENTRY, max_size=40))
def test_any_tree_comes_back(repository: Repository, entries: list[Any]) -> None:
    tree = repository.path.with_name("tree")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    make(tree, entries)
    assert_comes_back(repository, tree)


def test_deep_trees_and_full_folders_come_back(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "/".join(["d"] * 400)).mkdir(parents=True)
    many = tmp_path / "many"
    many.mkdir()
    first = many / "0"
    first.write_text("one")
    for number in range(1, 3000):
        os.link(first, many / f"{number:0200d}")
    for number in range(300):
        (many / f"folder{number}").mkdir()
    assert_comes_back(repository, tmp_path)


def test_a_tree_deeper_than_a_path_is_long_is_refused(repository: Repository, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.callback(run, "rm", "-rf", tmp_path / "n")
        name, at = "n" * 250, os.open(tmp_path, os.O_PATH)
        for part in ["n", *[name] * 20]:
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=at)
            below = os.open(part, os.O_PATH, dir_fd=at)
            os.close(at)
            at = below
        stack.callback(os.close, at)
        with pytest.raises(LivemountError, match="File name too long"):
            repository.make_files(tmp_path, "web01")
