"""`livemount:aws:ImageSnapshot`: the machine image as an EBS snapshot, which AMIs are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field
from typing_extensions import override

from livemount.image.ebs_snapshot import Publisher
from livemount.provider.resource import Inputs, Resource, Values


class ImageSnapshotInputs(Inputs):
    """Which image, where to, under which tags (they say whose the snapshot is)."""

    region: str
    path: Path
    digest: str = Field(pattern="^[0-9a-f]{64}$")
    tags: dict[str, str] = Field(min_length=1)

    @contextmanager
    def publisher(self) -> Iterator[Publisher]:
        """Clients of the region."""
        publisher = Publisher(self.region, self.tags)
        try:
            yield publisher
        finally:
            publisher.close()


class ImageSnapshot(Resource[ImageSnapshotInputs]):
    """A snapshot known by the digest of its bytes."""

    token = "livemount:aws:ImageSnapshot"  # noqa: S105
    inputs = ImageSnapshotInputs

    @override
    def id(self, inputs: ImageSnapshotInputs) -> str:
        """Region and digest."""
        return f"{inputs.region}:{inputs.digest}"

    @override
    def create(self, inputs: ImageSnapshotInputs) -> Values:
        """Publish the image, unless that has been done."""
        with inputs.publisher() as publisher:
            return {"snapshotId": publisher.publish(inputs.path, inputs.digest)}

    @override
    def read(self, inputs: ImageSnapshotInputs, outputs: Values) -> Values | None:
        """Whether there is a completed snapshot."""
        with inputs.publisher() as publisher:
            found = publisher.find(inputs.digest)
        return None if found is None else {"snapshotId": found}

    @override
    def delete(self, inputs: ImageSnapshotInputs, outputs: Values) -> None:
        """Delete it, and what was half made."""
        with inputs.publisher() as publisher:
            publisher.withdraw(inputs.digest)
