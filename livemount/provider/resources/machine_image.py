"""`livemount:index:MachineImage`: the fixed iPXE image that every virtual machine starts from."""

from __future__ import annotations

import hashlib
from pathlib import Path

from typing_extensions import override

from livemount.boot.api import BOOT_URL
from livemount.image.api import ImageRequest
from livemount.image.bake import bake
from livemount.provider.resource import Inputs, Resource, Values


class MachineImageInputs(Inputs):
    """What goes into the image, and where it is kept."""

    images_folder: Path
    ipxe_folder: Path
    """The iPXE binaries."""
    boot_url: str = BOOT_URL

    def request(self) -> ImageRequest:
        """What is baked."""
        return ImageRequest(boot_url=self.boot_url)


class MachineImage(Resource[MachineImageInputs]):
    """A raw disk named by its content."""

    token = "livemount:index:MachineImage"  # noqa: S105
    inputs = MachineImageInputs

    @override
    def id(self, inputs: MachineImageInputs) -> str:
        """One image for one boot URL in one folder."""
        return f"{inputs.images_folder}:{inputs.boot_url}"

    @override
    def create(self, inputs: MachineImageInputs) -> Values:
        """Bake it, where it is not there."""
        image = bake(inputs.request(), inputs.images_folder, inputs.ipxe_folder)
        return {"digest": image.digest, "path": str(image.path)}

    @override
    def read(self, inputs: MachineImageInputs, outputs: Values) -> Values | None:
        """Whether its file is there, with the bytes that its name promises."""
        if "path" not in outputs:
            return None
        try:
            with Path(outputs["path"]).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return None
        return outputs if digest == outputs["digest"] else None

    @override
    def delete(self, inputs: MachineImageInputs, outputs: Values) -> None:
        """Delete its file. One that was baked unseen is left: named by its content, it serves the next bake."""
        if "path" in outputs:
            Path(outputs["path"]).unlink(missing_ok=True)
