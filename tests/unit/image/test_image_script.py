"""The script inside the machine image, and what may stand in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from livemount.boot.api import BOOT_URL
from livemount.core.errors import NotFoundError, UsageError
from livemount.image.api import ImageRequest
from livemount.image.bake import bake, render_autoexec


def test_the_script_asks_the_fixed_url() -> None:
    """The URL stands in a chain command of its own, and the first line says what the file is."""
    lines = render_autoexec(ImageRequest()).splitlines()
    assert lines[0] == "#!ipxe"
    assert f"chain {BOOT_URL} || goto ask_retry" in lines


def test_the_script_waits_for_no_ipv6_router() -> None:
    """`dhcp` alone configures IPv6 too, which takes seconds where there is none."""
    commands = [line.split()[:3] for line in render_autoexec(ImageRequest()).splitlines()]
    assert ["ifconf", "--configurator", "dhcp"] in commands
    assert not any(words[:1] == ["dhcp"] for words in commands)


@pytest.mark.parametrize(
    "url",
    [
        "http://host/boot || shell",
        "http://host/boot\nshell",
        "http://host/${net0/mac}",
        "http://host/boot\n",
        "tftp://host/boot",
        "http:///boot",
        "",
    ],
)
def test_a_url_that_is_more_than_a_url_is_refused(url: str) -> None:
    """Nothing in the URL may be read as another command or a setting."""
    with pytest.raises(UsageError):
        render_autoexec(ImageRequest(boot_url=url))


def test_without_ipxe_the_way_out_is_told(tmp_path: Path) -> None:
    """The error names the folder and the command."""
    with pytest.raises(NotFoundError, match=r"livemount\.image\.ipxe"):
        bake(ImageRequest(), tmp_path / "images", tmp_path / "nothing")


def test_the_provider_does_not_fork() -> None:
    """It has gRPC's threads: a fork of it now and then dies before its program starts, without a word."""
    look = "import sys, livemount.provider.__main__; sys.exit('sh' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
