"""Reading tgtd's list of targets."""

from __future__ import annotations

from livemount.target.show import parse_targets

TEXT = """\
Target 1: iqn.2026-01.internal.livemount:web01
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 3
            Initiator: iqn.2026-01.internal.livemount:web01.guest alias: none
            Connection: 1
                IP Address: 10.77.0.10
        I_T nexus: 4
            Initiator: evil alias: x: y alias: LUN information:
            Connection: 2
                IP Address: 10.77.0.11
            Connection: 0
                IP Address: 10.77.0.11
    LUN information:
        LUN: 0
            Type: controller
            Online: Yes
            Backing store type: null
            Backing store path: None
        LUN: 1
            Type: disk
            Online: Yes
            Readonly: No
            Thin-provisioning: Yes
            Backing store type: rdwr
            Backing store path: /srv/a: b/disk
            Backing store flags: \n\
    Account information:
        web01
    ACL information:
        10.77.0.10
Target 12: iqn.2026-01.internal.livemount:db01
    System information:
        Driver: iscsi
    I_T nexus information:
    LUN information:
        LUN: 0
            Online: Yes
    Account information:
    ACL information:
"""


def test_all_of_a_target_is_read() -> None:
    """Sessions with their connections, LUNs, accounts, access list."""
    web, db = parse_targets(TEXT)
    assert (web.tid, web.iqn) == (1, "iqn.2026-01.internal.livemount:web01")
    first, second = web.nexuses
    assert (first.sid, first.connections, first.address) == (3, [1], "10.77.0.10")
    assert first.initiator == "iqn.2026-01.internal.livemount:web01.guest"
    assert (second.sid, second.connections, second.initiator) == (4, [2, 0], "evil")
    assert web.luns[1].path == "/srv/a: b/disk"
    assert web.luns[1].usable
    assert not web.luns[0].usable
    assert (web.accounts, web.acl) == (["web01"], ["10.77.0.10"])
    assert (db.tid, db.nexuses, db.accounts, db.acl, list(db.luns)) == (12, [], [], [], [0])


def test_a_read_only_lun_is_not_usable() -> None:
    """tgt falls back to read-only by itself when it may not write."""
    web = parse_targets(TEXT.replace("Readonly: No", "Readonly: Yes"))[0]
    assert not web.luns[1].usable


def test_nothing_and_nonsense_are_no_targets() -> None:
    """What does not fit is skipped."""
    assert parse_targets("") == []
    assert parse_targets("        LUN: 1\n    x\nTarget x: y\n            Initiator: a alias: b\n") == []
