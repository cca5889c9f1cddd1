"""LVM for tests: real volumes in a file, which real lvs tells of but which no kernel here activates; and a stand-in for
lvs that tells of an active one, whose device is a loop device.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from tests.support.foreign import Subject


def attach(image: Path, *options: str) -> str:
    """A loop device of a file."""
    words = ["losetup", "--find", "--show", *options, str(image)]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def detach(device: str) -> None:
    """Let go of it."""
    subprocess.run(["losetup", "--detach", device], check=True)


class LvsStandInSubject(Subject):
    """A read-only volume, as a program in lvs's place tells of it."""

    def __init__(self, folder: Path) -> None:
        self.device = ""
        self._path = os.environ["PATH"]
        script = folder / "bin" / "lvs"
        script.parent.mkdir()
        script.write_text(
            f'#!/bin/sh\nfor last; do :; done\n[ "$last" = vg0/web01 ] && exec cat {folder}/report\n'
            'echo "  Failed to find logical volume \\"$last\\"" >&2; exit 5\n'
        )
        script.chmod(0o755)
        os.environ["PATH"] = f"{script.parent}:{self._path}"
        super().__init__(folder)

    def serve(self, disk: Path) -> None:
        if self.device:
            detach(self.device)
        self.device = attach(disk, "--read-only")
        self.report()

    def report(self, **changed: str) -> None:
        """Have lvs say this of the volume."""
        facts = {
            "vg_name": "vg0",
            "lv_name": "web01",
            "lv_uuid": str(uuid.uuid4()),
            "lv_path": self.device,
            "lv_size": str((self.folder / "disk.raw").stat().st_size),
            "lv_attr": "-ri-a-----",
            "origin": "",
            "lv_time": "2026-11-24 10:40:39 +0000",
            **changed,
        }
        (self.folder / "report").write_text(json.dumps({"report": [{"lv": [facts]}]}))

    @property
    def uri(self) -> str:
        return "lvm:///vg0/web01"

    def missing(self) -> str:
        return "lvm:///vg0/web02"

    def close(self) -> None:
        os.environ["PATH"] = self._path
        detach(self.device)


class RealVolumes:
    """A volume group of its own, made and looked at by the real LVM, without the kernel's part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.group = f"livemount-test-{os.urandom(4).hex()}"
        image = folder / "pv"
        with image.open("wb") as file:
            file.truncate(48 << 20)
        self._device = attach(image)
        # Of this machine's devices it sees that one only.
        (folder / "lvm.conf").write_text(f"""
            devices {{
                filter = ["a|^{self._device}$|", "r|.*|"] use_devicesfile = 0
                obtain_device_list_from_udev = 0 external_device_info_source = "none"
            }}
            activation {{ udev_sync = 0 udev_rules = 0 monitoring = 0 }}
            backup {{ backup = 0 archive = 0 }}
            global {{ event_activation = 0 use_lvmpolld = 0 locking_dir = "{folder}/locks" }}
        """)
        self.environment = {"LVM_SYSTEM_DIR": str(folder), "LVM_SUPPRESS_FD_WARNINGS": "1"}
        try:
            self._run("pvcreate", "--yes", self._device)
            self._run("vgcreate", "--yes", self.group, self._device)
        except BaseException:
            self.close()
            raise

    def _run(self, *words: str) -> None:
        done = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def add(self, name: str, permission: str) -> None:
        """A volume of 4 MiB."""
        words = ["lvcreate", "--driverloaded", "n", "--activate", "n", "--zero", "n", "--wipesignatures", "n"]
        self._run(*words, "--permission", permission, "--size", "4M", "--name", name, self.group)

    def close(self) -> None:
        """Leave nothing behind."""
        detach(self._device)
        shutil.rmtree(self.folder)
