"""Renders the iPXE script of one guest; refuses every value that could be read as another iPXE command."""

from __future__ import annotations

import ipaddress
import re

from jinja2 import Environment, PackageLoader, StrictUndefined

from livemount.boot.api import BootScript
from livemount.core.errors import UsageError
from livemount.core.machine import is_name

IQN = re.compile(r"iqn\.\d{4}-\d{2}\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?:[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
SECRET = re.compile(r"[A-Za-z0-9]{12,255}")
LOGIN_TRIES = 24
PAUSE = 5
"""Seconds between two tries."""
VENDORS = ("debian", "ubuntu", "fedora", "redhat", "centos", "rocky", "almalinux", "opensuse", "sles", "amzn")
LOADERS = (
    *(rf"\EFI\{vendor}\{loader}" for vendor in VENDORS for loader in ("shimx64.efi", "grubx64.efi")),
    r"\EFI\systemd\systemd-bootx64.efi",
    r"\EFI\Microsoft\Boot\bootmgfw.efi",
)
"""Where distributions put their boot loader in the EFI system partition, besides `\\EFI\\BOOT\\BOOTX64.EFI`."""

_templates = Environment(
    loader=PackageLoader("livemount.boot"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # noqa: S701 (not HTML: every value is checked against a pattern instead)
)


def render_script(script: BootScript) -> str:
    """The script's text. Raises `UsageError` for a value that does not fit its pattern."""
    if not is_name(script.mount):
        raise UsageError(f"{script.mount!r} cannot name a mount")
    check_address(script.address)
    check_address(script.portal)
    for iqn in (script.target_iqn, script.initiator_iqn):
        if len(iqn) > 223 or not IQN.fullmatch(iqn):  # 223: RFC 7143, 4.2.7.2
            raise UsageError(f"{iqn!r} is not an iSCSI qualified name")
    if not is_name(script.chap.user):
        raise UsageError(f"{script.chap.user!r} cannot be a CHAP user")
    if not SECRET.fullmatch(script.chap.secret):
        raise UsageError(f"the CHAP secret of {script.mount} is not 12 to 255 letters and digits")
    return template("boot.ipxe.j2", script=script, tries=LOGIN_TRIES, pause=PAUSE, loaders=LOADERS)


def check_address(address: str) -> None:
    """Raise `UsageError` unless `address` is an IPv4 address in its usual form, as nginx and iPXE write it."""
    try:
        if str(ipaddress.IPv4Address(address)) == address:
            return
    except ValueError:
        pass
    raise UsageError(f"{address!r} is not an IPv4 address")


def template(name: str, **values: object) -> str:
    """Render one of this box's templates."""
    return _templates.get_template(name).render(values)
