"""`livemount:aws:HostCode`: the project's own code as an archive in a bucket, which the live-mount host fetches.

The archive is named by its content and made the same from the same files, so that an unchanged checkout changes
nothing. What an interrupted creation has put into the bucket goes with the bucket, or serves the next one.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typing_extensions import override

from livemount.core.errors import NotFoundError
from livemount.media.aws import make_client, told
from livemount.provider.resource import Inputs, Resource, Values

ROOT = Path(__file__).parents[3]
PARTS = ("LICENSE", "README.md", "ansible", "infra", "livemount", "native", "packer", "pyproject.toml", "setup")
"""What of the checkout the host's set-up needs."""
MADE = frozenset({"__pycache__", "target"})
"""Folders of what is made from it."""


class HostCodeInputs(Inputs):
    """Where it is put."""

    region: str
    bucket: str
    prefix: str


class HostCode(Resource[HostCodeInputs]):
    """An archive in a bucket."""

    token = "livemount:aws:HostCode"  # noqa: S105
    inputs = HostCodeInputs

    @override
    def id(self, inputs: HostCodeInputs) -> str:
        """Bucket and prefix."""
        return f"{inputs.bucket}/{inputs.prefix}"

    @override
    def create(self, inputs: HostCodeInputs) -> Values:
        """Put the archive of the files as they are now."""
        data = archive()
        digest = hashlib.sha256(data).hexdigest()
        key = f"{inputs.prefix}{digest}.tar.gz"
        _ask(inputs, "put_object", Key=key, Body=data)
        return {"key": key, "digest": digest}

    @override
    def read(self, inputs: HostCodeInputs, outputs: Values) -> Values | None:
        """Whether the archive is in the bucket."""
        if "key" not in outputs:
            return None
        try:
            _ask(inputs, "head_object", Key=outputs["key"])
        except NotFoundError:
            return None
        return outputs

    @override
    def delete(self, inputs: HostCodeInputs, outputs: Values) -> None:
        """Delete the archive."""
        if "key" in outputs:
            try:
                _ask(inputs, "delete_object", Key=outputs["key"])
            except NotFoundError:  # the bucket has gone before
                return

    @override
    def drifted(self, inputs: HostCodeInputs, outputs: Values) -> list[str]:
        """Files that have changed since."""
        return [] if outputs.get("digest") == hashlib.sha256(archive()).hexdigest() else ["digest"]


def archive(root: Path = ROOT) -> bytes:
    """A tar file, compressed, of the parts of a checkout; the same bytes for the same files."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _files(root):
            entry = tarfile.TarInfo(str(path.relative_to(root)))
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as file:
                tar.addfile(entry, file)
    return packed.getvalue()


def _files(root: Path) -> Iterator[Path]:
    for part in PARTS:
        found = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*"))
        for path in found:
            if path.is_file() and path.suffix not in (".so", ".pyc") and not MADE & {*path.relative_to(root).parts}:
                yield path


def _ask(inputs: HostCodeInputs, operation: str, **words: Any) -> None:
    client = make_client("s3", inputs.region, "", "", None)
    try:
        with told(f"the bucket {inputs.bucket}"):
            getattr(client, operation)(Bucket=inputs.bucket, **words)
    finally:
        client.close()
