"""Bakes the fixed machine image with Packer (packer/machine-image.pkr.hcl) and keeps it by its digest.

Images are never changed: `IMAGES/DIGEST.raw` appears whole and read-only. `IMAGES/INPUT.json` remembers which image an
input (request, script, iPXE binaries) gave, so that an unchanged request runs nothing. Two bakes at once wait for each
other; a killed one leaves a folder `bake-*` that the next one removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import BaseModel, ValidationError

from livemount.core.errors import CorruptError, LivemountError, NotFoundError, UsageError
from livemount.core.run import run
from livemount.image.api import ImageRequest, MachineImage
from livemount.image.ipxe import BINARIES, is_complete

TRIES = 60
PAUSE = 5
"""The machine asks for its script every 5 s for 5 minutes, then restarts."""
URL = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?(/[A-Za-z0-9._~/-]*)?")
TEMPLATE = Path(__file__).parents[2] / "packer" / "machine-image.pkr.hcl"


class _Record(BaseModel):
    digest: str
    request: ImageRequest


def bake(request: ImageRequest, images: Path, ipxe: Path) -> MachineImage:
    """The image for `request`, made from the iPXE binaries in the folder `ipxe` unless `images` has it already.

    Raises `NotFoundError` without iPXE or Packer's template, `UsageError` for a URL that iPXE could misread, and
    `LivemountError` with Packer's last words when it fails.
    """
    script = render_autoexec(request)
    if not is_complete(ipxe):
        raise NotFoundError(f"there is no iPXE in {ipxe}", hint=f"run `python -m livemount.image.ipxe {ipxe}`")
    images.mkdir(parents=True, exist_ok=True)
    with _lock(images):
        record = images / f"{_input_digest(script, ipxe)}.json"
        known = _recorded(record, request, images)
        if known is not None:
            return known
        for left in images.glob("bake-*"):
            shutil.rmtree(left)
        work = Path(mkdtemp(prefix="bake-", dir=images))
        try:
            output = _run_packer(work, script, ipxe)
            digest = _digest(output)
            output.chmod(0o444)
            output.replace(images / f"{digest}.raw")
            staged = work / "record.json"
            staged.write_text(_Record(digest=digest, request=request).model_dump_json())
            staged.replace(record)
        finally:
            shutil.rmtree(work)
    return MachineImage(digest=digest, path=images / f"{digest}.raw", request=request)


def render_autoexec(request: ImageRequest) -> str:
    """The script inside the image. Raises `UsageError` for a URL that could be read as more than a URL."""
    if not URL.fullmatch(request.boot_url):
        raise UsageError(f"{request.boot_url!r} is not a plain http or https URL")
    environment = Environment(
        loader=PackageLoader("livemount.image"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 (not HTML: the URL is checked against a pattern instead)
    )
    return environment.get_template("autoexec.ipxe.j2").render(boot_url=request.boot_url, tries=TRIES, pause=PAUSE)


def _run_packer(work: Path, script: str, ipxe: Path) -> Path:
    if not TEMPLATE.is_file():
        raise NotFoundError(f"Packer's template {TEMPLATE} is not there", hint="run from a checkout of the project")
    script_file, output, manifest = work / "autoexec.ipxe", work / "machine.raw", work / "manifest.json"
    script_file.write_text(script)
    variables = {
        "python": sys.executable,
        "ipxe": str(ipxe.absolute()),
        "script": str(script_file),
        "output": str(output),
        "manifest": str(manifest),
    }
    env = {
        **os.environ,
        "PYTHONPATH": str(TEMPLATE.parents[1]),
        "PACKER_CONFIG_DIR": str(work),
        "PACKER_NO_COLOR": "1",
        "CHECKPOINT_DISABLE": "1",
    }
    arguments = [word for name, value in variables.items() for word in ("-var", f"{name}={value}")]
    validate: tuple[str | Path, ...] = ("packer", "validate", *arguments, TEMPLATE)
    build = ("-m", f"{__package__}.packer_build", TEMPLATE)
    # Packer's plug-ins listen on sockets in TMPDIR, and the images may lie too deep for those.
    with TemporaryDirectory(prefix="lmp-") as sockets:
        env["TMPDIR"] = sockets
        # python-packer's own validate() hides the reason when it fails
        run(*validate, env=env, cwd=work)
        done = run(sys.executable, *build, input=json.dumps(variables), env=env, cwd=work, check=False)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()[-2000:]
        raise LivemountError(f"Packer could not bake the machine image, exit code {done.returncode}: {words}")
    files = [file["name"] for build in json.loads(manifest.read_text())["builds"] for file in build["files"]]
    if files != [str(output)] or not output.is_file():
        raise CorruptError(f"Packer's manifest names {files}, not the image {output}")
    return output


def _input_digest(script: str, ipxe: Path) -> str:
    digest = hashlib.sha256(script.encode())
    for file in (*(ipxe / name for name in sorted(BINARIES)), Path(__file__).with_name("disk.py"), TEMPLATE):
        if file.is_file():
            digest.update(bytes.fromhex(_digest(file)))
    return digest.hexdigest()


def _recorded(record: Path, request: ImageRequest, images: Path) -> MachineImage | None:
    """The image the record tells of, when its bytes are still what they were."""
    try:
        found = _Record.model_validate_json(record.read_text())
    except (FileNotFoundError, ValidationError):
        return None
    path = images / f"{found.digest}.raw"
    if not path.is_file() or _digest(path) != found.digest:
        return None
    return MachineImage(digest=found.digest, path=path, request=request)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _lock(images: Path) -> Iterator[None]:
    with (images / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
