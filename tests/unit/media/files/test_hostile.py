"""Snapshots that a stranger wrote: each is refused with a reason, or becomes a file system that e2fsck finds sound."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from livemount.core.errors import CorruptError, LivemountError, UnsupportedError
from livemount.core.secrets import write_secret
from livemount.media.files.boot import plan_boot
from livemount.media.repository import Repository
from livemount.media.sources.restic import open_repository
from tests.support.restic_writer import Key, SnapshotWriter, master_key

Node = dict[str, Any]
MIB = 1 << 20
PASSWORD = "secret"


@dataclass(frozen=True)
class Vault:
    """A repository to write snapshots into."""

    path: Path
    password: Path
    key: Key

    def writer(self) -> SnapshotWriter:
        return SnapshotWriter(self.path, self.key)

    def assert_sound_or_refused(self, snapshot: str) -> LivemountError | None:
        """The error that a snapshot is refused with; none for one that is sound."""
        disk = self.path.with_name("disk.raw")
        disk.unlink(missing_ok=True)
        disk.touch()
        try:
            tree = open_repository(self.path, self.password).file_tree(snapshot, Path("/"))
            plan = plan_boot(tree)
            files = [(name.encode(), content) for name, content in plan.files.items()]
            folders = [(name.encode(), mode) for name, mode in plan.folders.items()]
            tree.write(disk, 0, 0, plan.uuid.bytes, plan.label.encode(), MIB, files, folders)
            tree.disk(disk).close()
        except LivemountError as error:
            # An internal error is of no class.
            if type(error) not in (CorruptError, UnsupportedError):
                raise
            return error
        judged = subprocess.run(["e2fsck", "-f", "-n", disk], capture_output=True, text=True, check=False)
        assert judged.returncode == 0, judged.stdout
        return None


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    folder = tmp_path_factory.mktemp("vault")
    write_secret(folder / "password", PASSWORD)
    Repository.init(folder / "repository", folder / "password")
    return Vault(folder / "repository", folder / "password", master_key(folder / "repository", PASSWORD))


CHUNKS = (b"", b"a", b"b" * 4096, bytes(65536), b"c" * 70_001)
ACL = bytes.fromhex("0200000001000600ffffffff02000400d204000004000400ffffffff10000400ffffffff20000000ffffffff")


def mostly(good: st.SearchStrategy[Any], *bad: Any) -> st.SearchStrategy[Any]:
    """Good values, and now and then a bad one."""
    return st.integers(0, 15).flatmap(lambda number: st.sampled_from(bad) if number == 0 else good)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


NAMES = mostly(
    st.text(st.characters(exclude_characters='/\0\\"', exclude_categories=["Cs"]), min_size=1, max_size=60),
    *("", ".", "..", "a/b", "a\0b", "x" * 256, "y" * 255, r"\xff\xfe", r"\x00", r"\x2f", "\\", "lost+found", "é" * 130),
)
TIMES = mostly(
    st.datetimes().map(lambda moment: f"{moment.isoformat()}Z"),
    *("2020-01-01T00:00:00.123456789+05:00", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "rubbish", 5, None),
)
WORDS = st.integers(0, 2**32 - 1)
LONG_WORDS = st.integers(0, 2**64 - 1)
ATTRIBUTES = st.fixed_dictionaries(
    {
        "name": mostly(
            st.text(min_size=1, max_size=20).map(lambda text: f"user.{text}"),
            *("system.posix_acl_access", "system.posix_acl_default", "security.capability", "trusted.x", "user."),
            *("no-prefix", "user." + "x" * 255, "user." + "x" * 256, "system.data", "", "user.\0"),
        ),
        "value": mostly(st.binary(max_size=40).map(base64_of), None, base64_of(bytes(5000)), base64_of(ACL), "?"),
    }
)
FACTS = {
    "mode": mostly(WORDS, None, -1, 2**32),
    "mtime": TIMES,
    "atime": TIMES,
    "ctime": TIMES,
    "uid": mostly(WORDS, 2**32),
    "gid": WORDS,
    "inode": mostly(st.integers(0, 3), 2**64 - 1),
    "device_id": st.integers(0, 1),
    "links": mostly(st.integers(0, 3), 2**64 - 1),
    "extended_attributes": st.lists(ATTRIBUTES, max_size=3),
}


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> list[Node]:
    """The nodes of a folder; those below stand in `nodes`, chunks in `chunks`, until they are written."""
    found: list[Node] = []
    for name in draw(st.lists(NAMES, max_size=5)):
        kind = draw(
            mostly(st.sampled_from(["file", "dir", "symlink"]), "fifo", "socket", "dev", "chardev", "odd", None)
        )
        node: Node = {"name": name, "type": kind, **draw(st.fixed_dictionaries({}, optional=FACTS))}
        if kind == "file":
            node["chunks"] = draw(st.lists(mostly(st.integers(0, len(CHUNKS) - 1), -1), max_size=6))
            right = sum(len(CHUNKS[number]) for number in node["chunks"] if number >= 0)
            node["size"] = draw(mostly(st.just(right), 0, right + 1, 2**64 - 1))
        elif kind == "dir" and depth:
            node["nodes"] = draw(trees(depth=depth - 1))
        elif kind == "symlink":
            node["linktarget"] = draw(
                mostly(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80), "", "x" * 5000, "\0")
            )
        elif kind in ("dev", "chardev"):
            node["device"] = draw(mostly(LONG_WORDS, 2**64, -1))
        found.append(node)
    return found


def written(writer: SnapshotWriter, nodes: list[Node]) -> str:
    """Write a tree as `trees` makes them."""
    ready = []
    for node in nodes:
        node = dict(node)
        if "nodes" in node:
            node["subtree"] = written(writer, node.pop("nodes"))
        if "chunks" in node:
            numbers = node.pop("chunks")
            node["content"] = [writer.data(CHUNKS[number]) if number >= 0 else "0" * 64 for number in numbers]
        ready.append(node)
    return writer.tree(ready)


def file(name: str, *chunks: int, **facts: Any) -> Node:
    return {"name": name, "type": "file", "chunks": chunks, "size": sum(len(CHUNKS[at]) for at in chunks), **facts}


@example([file("a", 2), {"name": "b", "type": "socket"}, file("c", 1, 3, 4, 0, 3, mode=0o100644)])
@example([{"name": "lost+found", "type": "dir", "nodes": [file("a", 1)]}, file("b", 2)])
@example([file("lost+found", 2), file("b", 4)])
@example([file("one", 2, inode=5, links=2), file("other", 4, inode=5, links=2), file("same", 2, inode=5, links=2)])
@example([{"name": "boot", "type": "dir", "nodes": [file("vmlinuz-6.1.0", 2)]}, {"name": "etc", "type": "fifo"}])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(trees())
def test_any_nodes_are_refused_or_become_a_sound_file_system(vault: Vault, nodes: list[Node]) -> None:
    writer = vault.writer()
    vault.assert_sound_or_refused(writer.snapshot(written(writer, nodes)))


def deep(writer: SnapshotWriter) -> str:
    tree = writer.tree([])
    for _ in range(2100):
        tree = writer.tree([{"name": "d", "type": "dir", "subtree": tree}])
    return tree


def doubled(writer: SnapshotWriter) -> str:
    """Forty small folders, which stand for 2^40."""
    tree = writer.tree([])
    for _ in range(40):
        tree = writer.tree([{"name": name, "type": "dir", "subtree": tree} for name in "ab"])
    return tree


def linked(writer: SnapshotWriter) -> str:
    same = {"type": "fifo", "inode": 7, "links": 65_001}
    return writer.tree([{"name": f"{number}", **same} for number in range(65_001)])


def lying(facts: dict[str, int]) -> Callable[[SnapshotWriter], str]:
    def write(writer: SnapshotWriter) -> str:
        chunk = writer.data(b"a")
        writer.lies[chunk] = facts
        return writer.tree([{"name": "a", "type": "file", "size": 2**31, "content": [chunk]}])

    return write


def of(*nodes: Node) -> Callable[[SnapshotWriter], str]:
    return lambda writer: written(writer, list(nodes))


@pytest.mark.parametrize(
    ("write", "kind", "reason"),
    [
        pytest.param(deep, UnsupportedError, "deeper than 2000", id="deep"),
        pytest.param(doubled, UnsupportedError, "same folders over and over", id="doubled"),
        pytest.param(linked, UnsupportedError, "has 65001 names", id="linked"),
        pytest.param(
            lying({"uncompressed_length": 2**31}), CorruptError, "has a chunk of 2147483648", id="large-chunk"
        ),
        pytest.param(of(file("a", 2) | {"size": 5}), CorruptError, "should have 5 bytes", id="size"),
        pytest.param(of(file("a", -1) | {"size": 5}), CorruptError, "1 chunks of", id="no-chunk"),
        pytest.param(of({"name": "a", "type": "dir"}), CorruptError, "without content", id="no-subtree"),
        pytest.param(
            of({"name": "a", "type": "dir", "subtree": "0" * 64}), CorruptError, "cannot be found", id="no-tree"
        ),
        pytest.param(of(file("a"), file("a")), CorruptError, "is there twice", id="twice"),
        pytest.param(of(file("../../etc/passwd")), CorruptError, "can name no file", id="slashes"),
        pytest.param(of(file("x" * 256)), CorruptError, "can name no file", id="long-name"),
        pytest.param(of({"name": "a", "type": "symlink", "linktarget": ""}), CorruptError, "leads nowhere", id="link"),
        pytest.param(
            of({"name": "etc", "type": "dir", "nodes": [file("fstab", *[4] * 20)]}),
            UnsupportedError,
            "fstab has 1400020 bytes",
            id="long-fstab",
        ),
        pytest.param(
            of({"name": "boot", "type": "dir", "nodes": [file("vmlinuz-1", 1)]}, {"name": "etc", "type": "fifo"}),
            UnsupportedError,
            "the way to /etc/fstab",
            id="etc-is-no-folder",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    vault: Vault, write: Callable[[SnapshotWriter], str], kind: type[LivemountError], reason: str
) -> None:
    writer = vault.writer()
    error = vault.assert_sound_or_refused(writer.snapshot(write(writer)))
    assert isinstance(error, kind)
    assert reason in error.message
