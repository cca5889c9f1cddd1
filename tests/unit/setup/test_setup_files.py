"""The set-up's lists: complete, locked, and free of addresses."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LOCKS = ("requirements.txt", "toolchains.txt")


def entries(name: str) -> dict[str, str]:
    """Package names, normalised (PEP 503), and all that the lock says of each."""
    text = (ROOT / "setup" / name).read_text()
    found = re.findall(r"^([\w.-]+)==(\S+(?:.*\\\n)*.*)$", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", package).lower(): rest for package, rest in found}


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_has_hashes_and_no_address_is_named(name: str) -> None:
    assert entries(name)
    assert all(rest.count("--hash=sha256:") >= 1 for rest in entries(name).values())
    text = (ROOT / "setup" / name).read_text()
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_all_that_the_project_requires_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["dev"],
        *project["build-system"]["requires"],
    ]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower() for text in wanted}  # type: ignore[index]
    assert names <= set(entries("requirements.txt"))
    assert entries("requirements.txt")["pulumi"].startswith("3.250.0 ")


def test_every_debian_package_says_why() -> None:
    lines = (ROOT / "setup" / "apt-packages.txt").read_text().splitlines()
    packages = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]+ +# \S.*", line) for line in packages)
    names = [line.split()[0] for line in packages]
    assert len(names) == len(set(names)) > 20
