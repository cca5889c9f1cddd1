"""How a tree is made to boot: names that its own menu knows are kept, what does not fit is replaced."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest

from livemount import _native
from livemount.media.files.boot import FOLDERS, BootPlan, plan_boot

UUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
MENU = f"search --fs-uuid --set=root {UUID}\nlinux /boot/vmlinuz-6.1.0 root=UUID={UUID} ro\n"
KERNEL = {"boot/vmlinuz-6.1.0": "kernel", "boot/initrd.img-6.1.0": "initrd"}


@pytest.fixture
def repository(tmp_path: Path) -> _native.Repository:
    return _native.Repository.init(tmp_path / "repository", "secret")


def planned(repository: _native.Repository, folder: Path, files: Mapping[str, str]) -> BootPlan:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    made = repository.backup_files(
        folder, "web01", [], [], False, None, lambda _bytes: b"{}", lambda _read, _total: None
    )
    return plan_boot(repository.file_tree(made.id, Path("/web01/files0")))


def test_a_system_that_knows_its_disk_by_uuid_is_left_as_it_is(repository: _native.Repository, tmp_path: Path) -> None:
    fstab = f"UUID={UUID} / ext4 defaults 0 1\ntmpfs /tmp tmpfs size=1g 0 0\n"
    plan = planned(repository, tmp_path / "tree", {**KERNEL, "etc/fstab": fstab, "boot/grub/grub.cfg": MENU})
    assert plan == BootPlan(uuid.UUID(UUID), "root", {}, FOLDERS)


def test_entries_of_other_disks_become_comments(repository: _native.Repository, tmp_path: Path) -> None:
    fstab = (
        "# a comment\n/dev/mapper/vg-root / xfs defaults 0 0\nUUID=AB12-CD34 /boot/efi vfat umask=0077 0 1\n"
        "/dev/sda2 none swap sw 0 0\nserver:/home /home nfs _netdev 0 0\n"
    )
    plan = planned(repository, tmp_path / "tree", {**KERNEL, "etc/fstab": fstab})
    assert plan.files["etc/fstab"].decode() == (
        f"# a comment\nUUID={plan.uuid} / ext4 errors=remount-ro 0 1\n"
        "# not in this copy: UUID=AB12-CD34 /boot/efi vfat umask=0077 0 1\n"
        "# not in this copy: /dev/sda2 none swap sw 0 0\nserver:/home /home nfs _netdev 0 0\n"
    )


def test_a_menu_is_made_for_the_newest_kernel_with_an_initrd(repository: _native.Repository, tmp_path: Path) -> None:
    files = {
        "boot/vmlinuz-6.9.1": "k",
        "boot/initramfs-6.9.1.img": "i",
        "boot/vmlinuz-6.10.2": "k",
        "boot/initramfs-6.10.2.img": "i",
        "boot/vmlinuz-6.11.0": "no initrd",
        "boot/vmlinuz-0-rescue-abc": "k",
        "etc/fstab": "LABEL=system / ext4 defaults 0 1\n",
        "etc/default/grub": 'GRUB_CMDLINE_LINUX="console=ttyS0 root=/dev/sda1 $(reboot) resume=/dev/sda2"\n',
    }
    plan = planned(repository, tmp_path / "tree", files)
    menu = plan.files["boot/grub/grub.cfg"].decode()
    assert f"linux /boot/vmlinuz-6.10.2 root=UUID={plan.uuid} ro console=ttyS0\n" in menu
    assert "initrd /boot/initramfs-6.10.2.img\n" in menu
    assert plan.label == "system"


def test_a_menu_of_a_boot_partition_that_is_gone_is_replaced(repository: _native.Repository, tmp_path: Path) -> None:
    fstab = f"UUID={UUID} / ext4 defaults 0 1\nUUID={uuid.uuid4()} /boot ext4 defaults 0 2\n"
    plan = planned(repository, tmp_path / "tree", {**KERNEL, "etc/fstab": fstab, "boot/grub/grub.cfg": MENU})
    assert "/boot/vmlinuz-6.1.0" in plan.files["boot/grub/grub.cfg"].decode()


def test_a_tree_that_is_no_system_is_not_changed(repository: _native.Repository, tmp_path: Path) -> None:
    plan = planned(repository, tmp_path / "tree", {"data/file": "text"})
    assert (plan.files, plan.folders) == ({}, {})
    assert plan.uuid == planned(repository, tmp_path / "tree", {}).uuid
