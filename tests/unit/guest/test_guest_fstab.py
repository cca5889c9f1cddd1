"""What is changed in a guest's fstab, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.guest.disk import Disk, Partition
from livemount.guest.fstab import mend, parse

ROOT = Partition(1, 0, 1, "", False, "1234-01", "ext4", "aaaa", "system")
SWAP = Partition(2, 0, 1, "", False, "1234-02", "swap", "bbbb", None)
DATA = Partition(0, 0, 1, "", False, "", "ext4", "cccc", "data")
DISK = Disk(Path("disk"), 2, "gpt", (ROOT, SWAP))
OTHER = Disk(Path("other"), 1, "", (DATA,))


@pytest.mark.parametrize(
    ("line", "mended"),
    [
        ("/dev/sda1 / ext4 errors=remount-ro 0 1", "UUID=aaaa / ext4 errors=remount-ro 0 1"),
        ("UUID=aaaa\t/\text4\tdefaults\t0 1", "UUID=aaaa\t/\text4\tdefaults\t0 1"),
        ("/dev/vda2 none swap sw 0 0", "UUID=bbbb none swap sw 0 0"),
        ("UUID=cccc /data ext4 defaults 0 2", "UUID=cccc /data ext4 _netdev 0 2"),
        ("LABEL=data /data ext4 noatime,nofail", "LABEL=data /data ext4 noatime,nofail,_netdev"),
        ("UUID=cccc /data ext4 _netdev 0 2", "UUID=cccc /data ext4 _netdev 0 2"),
        ("UUID=cccc /data ext4", "UUID=cccc /data ext4 _netdev"),
        ("UUID=dddd /old xfs defaults 0 2", "UUID=dddd /old xfs nofail,x-systemd.device-timeout=10s 0 2"),
        ("/dev/sdc1 /old xfs ro", "/dev/sdc1 /old xfs ro,nofail,x-systemd.device-timeout=10s"),
        ("/dev/nvme1n1p3 none swap sw 0 0", "/dev/nvme1n1p3 none swap sw,nofail,x-systemd.device-timeout=10s 0 0"),
        ("UUID=dddd /old xfs nofail 0 2", "UUID=dddd /old xfs nofail 0 2"),
        ("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0", "/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0"),
        ("UUID=dddd / ext4 defaults 0 1", "UUID=dddd / ext4 defaults 0 1"),
        ("/swapfile none swap sw 0 0", "/swapfile none swap sw 0 0"),
        ("server:/home /home nfs defaults 0 0", "server:/home /home nfs defaults 0 0"),
        ("tmpfs /tmp tmpfs size=10%", "tmpfs /tmp tmpfs size=10%"),
        ("/dev/mapper/vg-home /home ext4 defaults 0 2", "/dev/mapper/vg-home /home ext4 defaults 0 2"),
        ("# UUID=dddd /old xfs defaults 0 2", "# UUID=dddd /old xfs defaults 0 2"),
        ("", ""),
        ("nonsense", "nonsense"),
    ],
)
def test_a_line_is_mended_once(line: str, mended: str) -> None:
    found = mend(f"# top\n{line}\n", DISK, [OTHER])
    assert found.text == f"# top\n{mended}\n"
    assert bool(found.changes) == (line != mended)
    again = mend(found.text, DISK, [OTHER])
    assert (again.text, again.changes) == (found.text, ())


def test_what_is_not_in_the_copy_is_told() -> None:
    text = "UUID=dddd / ext4 defaults 0 1\nUUID=eeee none swap sw 0 0\nUUID=ffff /old xfs defaults 0 0\n"
    found = mend(text, DISK, [])
    assert [warning.partition(",")[0] for warning in found.warnings] == [
        "/ is on UUID=dddd",
        "swap is on UUID=eeee",
        "/old is on UUID=ffff",
    ]
    assert found.changes == ("the boot goes on without what is not in the copy (nofail)",)


@given(st.text(alphabet=st.sampled_from("#/\t \n=,abUID-dev0os1\"'\\\r"), max_size=200) | st.text(max_size=200))
def test_any_text_keeps_its_lines(text: str) -> None:
    found = mend(text, DISK, [OTHER])
    before, after = text.splitlines(keepends=True), found.text.splitlines(keepends=True)
    assert len(before) == len(after)
    assert [(entry.place, entry.kind) for entry in parse(text)] == [(e.place, e.kind) for e in parse(found.text)]
    assert mend(found.text, DISK, [OTHER]).text == found.text
