"""Disk images for the contract test, made by QEMU's own programs."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

from tests.support.foreign import MIB, Subject, cut, flip


class ImageSubject(Subject):
    """An image that QEMU has converted."""

    can = frozenset({"truncated"})
    suffix = ""
    format = ""
    options = ""

    @property
    def image(self) -> Path:
        """The image's file."""
        return self.folder / f"disk.{self.suffix}"

    @property
    def uri(self) -> str:
        return f"image://{self.image}"

    def serve(self, disk: Path) -> None:
        self.image.unlink(missing_ok=True)
        options = ("-o", self.options) if self.options else ()
        qemu_img("convert", "-f", "raw", "-O", self.format, *options, disk, self.image)

    def missing(self) -> str:
        return f"image://{self.folder}/missing.{self.suffix}"

    def truncate(self) -> None:
        cut(self.image)


class Qcow2Subject(ImageSubject):
    """qcow2, compressed in no part."""

    can = ImageSubject.can | {"holes", "corrupt"}
    suffix = format = "qcow2"
    options = "cluster_size=65536"

    def damage(self) -> None:
        # The first entry of the first table of clusters, to which the first entry of the table of tables points.
        with self.image.open("rb") as file:
            file.seek(40)
            file.seek(int.from_bytes(file.read(8)))
            table = int.from_bytes(file.read(8)) & 0x00FF_FFFF_FFFF_FE00
        flip(self.image, table + 3)


class Qcow2ChainSubject(ImageSubject):
    """An overlay on an overlay on a raw image, each with a part of the disk."""

    can = ImageSubject.can | {"holes"}
    suffix = "qcow2"

    def serve(self, disk: Path) -> None:
        content = disk.read_bytes()
        base = self.folder / "base.img"
        base.write_bytes(random.Random(3).randbytes(4 * MIB) + content[4 * MIB :])
        subprocess.run(["fallocate", "--dig-holes", base], check=True)
        layers = [base, self.folder / "middle.qcow2", self.image]
        for number, format in ((1, "raw"), (2, "qcow2")):
            layers[number].unlink(missing_ok=True)
            name = layers[number - 1].name
            qemu_img("create", "-f", "qcow2", "-b", name, "-F", format, layers[number], cwd=self.folder)
        for number, part in ((1, slice(0, 3 * MIB)), (2, slice(2 * MIB, 4 * MIB))):
            write_into(layers[number], part.start, content[part])

    def truncate(self) -> None:
        cut(self.folder / "middle.qcow2")


class VmdkSubject(ImageSubject):
    """vmdk as VMware exports it: compressed grains in one file."""

    can = ImageSubject.can | {"holes"}
    suffix = format = "vmdk"
    options = "subformat=streamOptimized"


class VmdkSplitSubject(VmdkSubject):
    """vmdk with its data in files that its descriptor names."""

    options = "subformat=twoGbMaxExtentSparse"

    def truncate(self) -> None:
        cut(self.folder / "disk-s001.vmdk")


class VhdSubject(ImageSubject):
    """vhd, dynamic."""

    suffix = "vhd"
    format = "vpc"
    options = "force_size=on"


class VhdxSubject(ImageSubject):
    """vhdx, dynamic."""

    suffix = format = "vhdx"
    options = "block_size=1M"


def qemu_img(*words: str | Path, cwd: Path | None = None) -> None:
    """Run qemu-img."""
    done = subprocess.run(["qemu-img", *words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_into(image: Path, offset: int, data: bytes) -> None:
    """Write into a qcow2 image as a guest would."""
    part = image.with_suffix(".part")
    part.write_bytes(data)
    words = ["qemu-io", "-f", "qcow2", "-c", f"write -s {part} {offset} {len(data)}", str(image)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    part.unlink()
    assert "wrote" in done.stdout, done.stdout + done.stderr
