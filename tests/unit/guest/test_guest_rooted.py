"""No path and no link in a guest's tree leads out of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from livemount.core.errors import UnsupportedError
from livemount.guest.rooted import Root

SECRET = b"the host's own"
PART = st.sampled_from(["..", ".", "a", "b", "etc", "secret", "outside", "link0", "link1", "link2"])
TARGET = st.builds(lambda lead, parts: lead + "/".join(parts), st.sampled_from(["", "/"]), st.lists(PART, min_size=1))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_bytes(SECRET)
    (tmp_path / "tree/etc").mkdir(parents=True)
    return tmp_path / "tree"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(links=st.lists(TARGET, min_size=3, max_size=3), path=TARGET)
def test_nothing_outside_is_read_or_written(links: list[str], path: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        for secret in ("outside", "secret", "a", "b"):
            (top / secret).write_bytes(SECRET)
        (top / "tree/etc").mkdir(parents=True)
        for number, target in enumerate(links):
            for folder in ("tree", "tree/etc"):
                (top / folder / f"link{number}").symlink_to(target)
        with Root.at(top / "tree") as root:
            for use in (path, f"etc/{path}", "link0", "etc/link1", "/link2/outside"):
                with contextlib.suppress(OSError, UnsupportedError):
                    assert root.read(use, 100) != SECRET
                with contextlib.suppress(OSError, ValueError):
                    root.write(use, b"changed")
        for secret in ("outside", "secret", "a", "b"):
            assert (top / secret).read_bytes() == SECRET
        assert sorted(entry.name for entry in top.iterdir()) == ["a", "b", "outside", "secret", "tree"]


def test_a_link_is_followed_as_the_guest_would(tree: Path) -> None:
    (tree / "usr/lib").mkdir(parents=True)
    (tree / "lib").symlink_to("/usr/lib")
    (tree / "usr/lib/file").write_text("in the tree")
    with Root.at(tree) as root:
        assert root.read("/lib/file", 100) == b"in the tree"
        assert root.read("/../../lib/file", 100) == b"in the tree"
        assert root.names("/lib") == ["file"]


def make_link(tree: Path) -> None:
    (tree / "boot").symlink_to("../outside")


def make_pipe(tree: Path) -> None:
    os.mkfifo(tree / "boot")


def make_folder(tree: Path) -> None:
    (tree / "boot").mkdir()


@pytest.mark.parametrize("make", [make_link, make_pipe, make_folder])
def test_what_is_no_file_is_not_read(tree: Path, make: Callable[[Path], None]) -> None:
    make(tree)
    with Root.at(tree) as root, pytest.raises((UnsupportedError, FileNotFoundError)):
        root.read("/boot", 100)


def test_a_longer_file_than_allowed_is_refused(tree: Path) -> None:
    (tree / "big").write_bytes(b"x" * 101)
    with Root.at(tree) as root:
        assert root.read("/etc/../big", 101) == b"x" * 101
        with pytest.raises(UnsupportedError, match="longer than 100 bytes"):
            root.read("/big", 100)


def test_writing_replaces_a_link_and_tells_whether_it_changed(tree: Path) -> None:
    (tree / "etc/unit").symlink_to("../../outside")
    with Root.at(tree) as root:
        assert root.write("/etc/unit", b"ours", 0o755)
        assert not root.write("/etc/unit", b"ours", 0o755)
        assert root.write("/etc/unit", b"ours", 0o644)
        assert root.write("/etc/new/deep/unit", b"ours")
        assert root.link("/etc/wants", "unit")
        assert not root.link("/etc/wants", "unit")
        root.remove("/etc/wants")
        root.remove("/etc/wants")
    assert (tree.parent / "outside").read_bytes() == SECRET
    assert (tree / "etc/unit").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in (tree / "etc").iterdir()) == ["new", "unit"]
