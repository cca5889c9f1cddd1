"""The boot script's text, and that nothing can be smuggled into it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.boot.api import BootScript
from livemount.boot.script import render_script
from livemount.core.errors import UsageError
from livemount.core.machine import Firmware
from livemount.target.api import Chap, initiator_iqn, target_iqn

SECRET = "abcdefghijklmnopqrstuvwxyz012345"


def script(firmware: Firmware = Firmware.BIOS, **changes: str) -> BootScript:
    """A good script with some values changed."""
    values = {
        "mount": "web01",
        "address": "10.77.0.10",
        "portal": "10.77.0.2",
        "target_iqn": target_iqn("web01"),
        "initiator_iqn": initiator_iqn("web01"),
        "user": "web01",
        "secret": SECRET,
        **changes,
    }
    chap = Chap(user=values.pop("user"), secret=values.pop("secret"))
    return BootScript(
        mount=values["mount"],
        address=values["address"],
        portal=values["portal"],
        target_iqn=values["target_iqn"],
        initiator_iqn=values["initiator_iqn"],
        chap=chap,
        firmware=firmware,
    )


def test_bios_script_logs_in_and_boots_the_disk() -> None:
    """The commands that matter, in their order."""
    lines = render_script(script()).splitlines()
    wanted = [
        "#!ipxe",
        f"set initiator-iqn {initiator_iqn('web01')}",
        "set username web01",
        f"set password {SECRET}",
        "set keep-san 1",
        f"sanhook --drive 0x80 iscsi:10.77.0.2:::1:{target_iqn('web01')} || goto login_retry",
        "sanboot --drive 0x80 ||",
    ]
    assert [line for line in lines if line in wanted] == wanted
    assert not [line for line in lines if "filename" in line]


def test_uefi_script_tries_the_loaders_of_distributions() -> None:
    """The removable-media path first."""
    lines = [line for line in render_script(script(Firmware.UEFI)).splitlines() if line.startswith("sanboot")]
    assert lines[0] == "sanboot --drive 0x80 ||"
    assert r"sanboot --drive 0x80 --filename \EFI\debian\shimx64.efi ||" in lines


def test_every_goto_has_its_label() -> None:
    """iPXE finds a missing label only when it gets there."""
    for firmware in Firmware:
        words = render_script(script(firmware)).split()
        for place, word in enumerate(words):
            if word == "goto":
                assert f":{words[place + 1]}" in words


@pytest.mark.parametrize("field", ["mount", "address", "portal", "target_iqn", "initiator_iqn", "user", "secret"])
@pytest.mark.parametrize(
    "tail", ["\nshell", "\rshell", " || shell", "${net0/mac}", "\0", ";", "\x0b", "\u2028", "&& reboot", "\n", "/../x"]
)
def test_commands_in_values_are_refused(field: str, tail: str) -> None:
    """In every field, behind a good value."""
    good = {
        "mount": "web01",
        "address": "10.77.0.10",
        "portal": "10.77.0.2",
        "target_iqn": target_iqn("web01"),
        "initiator_iqn": initiator_iqn("web01"),
        "user": "web01",
        "secret": SECRET,
    }
    with pytest.raises(UsageError):
        render_script(script(Firmware.BIOS, **{field: good[field] + tail}))


@given(st.text(max_size=60))
def test_whatever_is_accepted_stays_one_word(secret: str) -> None:
    """A secret is refused or stands alone behind `set password`."""
    try:
        text = render_script(script(secret=secret))
    except UsageError:
        return
    assert text.count(secret) == 1
    assert f"\nset password {secret}\n" in text
