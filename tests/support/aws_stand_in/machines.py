"""What an instance does, where a test asks for it: a machine in QEMU on the address of the instance's interface.

It starts from the very bytes of the snapshot that its image is made of, read by the EBS direct API.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from livemount.core.machine import Firmware
from livemount.local_cloud.api import InterfaceSpec, MachineSpec
from livemount.local_cloud.cloud import QemuCloud

FOLDER = "AWS_STAND_IN_CLOUD"
"""The variable with the folder of a local cloud; without it nothing runs on instances."""
NETWORK = "guests"
SNAPSHOT_TAG = "stand-in:snapshot"
MODE_TAG = "stand-in:boot-mode"
"""moto remembers neither of an image."""
FIRMWARES = {"legacy-bios": Firmware.BIOS, "uefi": Firmware.UEFI}
MEMORY_MIB = 768
BLOCK = 512 << 10


def _cloud() -> QemuCloud | None:
    return QemuCloud(Path(os.environ[FOLDER])) if FOLDER in os.environ else None


def tags(snapshot: str, mode: str) -> list[dict[str, str]]:
    """What an image has to remember."""
    return [{"Key": SNAPSHOT_TAG, "Value": snapshot}, {"Key": MODE_TAG, "Value": mode}]


def plug(interface: str, address: str) -> None:
    """Make an interface."""
    if (cloud := _cloud()) is not None:
        cloud.create_interface(InterfaceSpec(name=interface, network=NETWORK, address=address))


def unplug(interface: str) -> None:
    """Take it away."""
    if (cloud := _cloud()) is not None:
        cloud.delete_interface(interface)


def start(clients: Any, instance: str, interface: str, image: dict[str, Any]) -> None:
    """Start a machine from an image."""
    if (cloud := _cloud()) is None:
        return
    known = {tag["Key"]: tag["Value"] for tag in image["Tags"]}
    disk = Path(os.environ[FOLDER]) / f"{known[SNAPSHOT_TAG]}.raw"
    with disk.open("wb") as file:
        listed = clients.ebs.list_snapshot_blocks(SnapshotId=known[SNAPSHOT_TAG])
        for block in listed["Blocks"]:
            asked = {"BlockIndex": block["BlockIndex"], "BlockToken": block["BlockToken"]}
            data = clients.ebs.get_snapshot_block(SnapshotId=known[SNAPSHOT_TAG], **asked)["BlockData"].read()
            file.seek(block["BlockIndex"] * BLOCK)
            file.write(data)
        file.truncate(listed["VolumeSize"] << 30)
    cloud.create_machine(
        MachineSpec(
            name=instance, interface=interface, image=disk, firmware=FIRMWARES[known[MODE_TAG]], memory_mib=MEMORY_MIB
        )
    )


def end(instance: str) -> None:
    """End it."""
    if (cloud := _cloud()) is not None:
        cloud.delete_machine(instance, wait=0)
