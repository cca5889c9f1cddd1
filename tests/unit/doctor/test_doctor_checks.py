"""Checks on crippled machines: each names what is missing and the way out."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from livemount.core.errors import UnavailableError
from livemount.doctor import api, bindings, cache, programs, resources
from livemount.doctor.api import Check, checks

ROOT = Path(__file__).resolve().parents[3]


def found(name: str) -> Check:
    return checks({name})[0]


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(programs, "SYSTEM_FOLDERS", ())
    return folder


def program(folder: Path, name: str, says: str = "") -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\necho {says}\n")
    path.chmod(0o755)


def test_every_check_has_a_name_of_its_own_and_a_way_out_when_it_fails(empty_path: Path) -> None:
    made = checks()
    names = [check.name for check in made]
    assert len(set(names)) == len(names) >= 18
    failed = [check for check in made if not check.ok]
    assert failed
    assert all(check.way_out and check.detail for check in failed)
    assert all(check.way_out is None and check.detail for check in made if check.ok)


def test_missing_programs_are_named_with_their_packages(empty_path: Path) -> None:
    for name in programs.HOST:
        program(empty_path, name)
    assert found("programs of the live-mount host").ok
    (empty_path / "tgtd").unlink()
    (empty_path / "tgtadm").unlink()
    (empty_path / "zstd").unlink()
    check = found("programs of the live-mount host")
    assert check.detail == "missing: tgtd, tgtadm, zstd"
    assert check.way_out is not None
    assert check.way_out.endswith("apt-get install tgt zstd")


def test_packages_that_are_advised_are_those_the_setup_installs() -> None:
    listed = (ROOT / "setup" / "apt-packages.txt").read_text().splitlines()
    installed = {line.split("#")[0].strip() for line in listed}
    tables = (programs.HOST, programs.CLOUD, programs.IMAGE, programs.FIRMWARE, bindings.DEBIAN)
    advised = {package for table in tables for package in table.values()} | {"supervisor"}
    assert advised <= installed


def test_missing_firmware_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "FIRMWARE", {"/nowhere/OVMF.fd": "ovmf"})
    assert found("firmware").detail == "missing: /nowhere/OVMF.fd"


def test_a_device_that_does_not_open_is_named_with_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "open", refuse)
    for name, device, module in (("FUSE", "/dev/fuse", "fuse"), ("loop devices", "/dev/loop-control", "loop")):
        check = found(name)
        assert check.detail == f"{device}: Operation not permitted"
        assert check.way_out is not None
        assert f"modprobe {module}" in check.way_out


def test_a_kernel_without_bridges_is_named(empty_path: Path) -> None:
    program(empty_path, "unshare", "; echo 'Operation not supported' >&2; exit 2")
    check = found("bridges")
    assert check.detail == "bridge: Operation not supported"
    assert check.way_out is not None
    assert "modprobe bridge" in check.way_out


def test_another_user_than_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert found("root") == Check(name="root", ok=False, detail="user id is 1000", way_out="run as root (sudo)")


def test_bindings_that_cannot_be_imported_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bindings.DEBIAN, "no_such_binding", "python3-none")
    check = found("Python bindings of Debian")
    assert "cannot import" in check.detail
    assert "no_such_binding" in check.detail


def test_the_pulumi_cli_is_found_in_the_cache_and_its_version_compared(
    empty_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVEMOUNT_CACHE", str(tmp_path))
    assert found("Pulumi CLI").detail == "pulumi is not installed"
    folder = tmp_path / "pulumi-bin"
    folder.mkdir()
    program(folder, "pulumi", "v3.1.9")
    program(folder, "pulumi-language-python")
    assert "3.1.9, older than" in found("Pulumi CLI").detail
    program(folder, "pulumi", "v999.0.0-dev")
    assert found("Pulumi CLI").ok
    assert found("Pulumi language host for Python").detail == f"{folder}/pulumi-language-python"


def test_what_is_missing_in_the_cache_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEMOUNT_CACHE", str(tmp_path))
    (tmp_path / "ipxe").mkdir()
    (tmp_path / "ipxe" / "ipxe.lkrn").touch()
    assert found("iPXE binaries").detail == f"they are not in {tmp_path}/ipxe"
    (tmp_path / "ipxe" / "ipxe.efi").touch()
    assert found("iPXE binaries").ok
    assert found("tools for guests").detail == f"the tools for guests are not in {tmp_path}/guest-tools"
    assert found("tools for guests").way_out is not None


def test_too_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 3 << 30))
    monkeypatch.setenv("LIVEMOUNT_HOME", str(tmp_path / "not" / "made"))
    check = found("disk space for stores")
    assert check.detail == f"3.0 GiB free for {tmp_path}/not/made, wanted are {resources.HOME_GIB}"
    assert check.way_out == "free some, or set LIVEMOUNT_HOME to another folder"
    monkeypatch.setattr(resources, "MEMORY_GIB", 1 << 20)
    assert "wanted are 1048576" in found("memory").detail


def test_a_check_that_breaks_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks() -> str:
        raise UnavailableError("it is out", hint="wait")

    monkeypatch.setitem(api._checkers, "broken", breaks)
    assert found("broken") == Check(name="broken", ok=False, detail="it is out", way_out="wait")
    assert found("memory").ok


def test_version_numbers_compare_as_numbers() -> None:
    assert cache._numbers("3.99.1") < cache._numbers("3.250.0") == cache._numbers("v3.250.0-dev.1")
