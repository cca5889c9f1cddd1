"""Gets the iPXE binaries: those of Debian trixie's package, without touching the machine's own apt.

`python -m livemount.image.ipxe FOLDER` (set-up runs it). bookworm's iPXE is of 2019 and has no HTTPS. The machine's own
mirror is asked, with another suite, through lists and caches in a temporary folder; apt checks the archive's signature.
Whoever has an own build of iPXE (e.g. with a private CA) puts `ipxe.lkrn` and `ipxe.efi` in the folder instead.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from livemount.core.errors import LivemountError, NotFoundError, UnavailableError
from livemount.core.run import CommandError, run
from livemount.core.settings import Settings

SUITE = "trixie"
PACKAGE = "ipxe"
BINARIES = {"ipxe.lkrn": "usr/lib/ipxe/ipxe.lkrn", "ipxe.efi": "usr/lib/ipxe/ipxe-amd64.efi"}
"""The file in our folder, and where the package has it."""


def default_folder() -> Path:
    """Where set-up puts the binaries."""
    return Settings().cache / "ipxe"


def is_complete(folder: Path) -> bool:
    """Whether both binaries are there."""
    return all((folder / name).is_file() for name in BINARIES)


def fetch(folder: Path) -> None:
    """Make sure that the binaries are in `folder`; what is there already is kept.

    Raises `UnavailableError` when the mirror does not answer, `NotFoundError` when this machine has no Debian mirror.
    """
    if is_complete(folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="fetch-", dir=folder) as temporary:
        work = Path(temporary)
        package = _download(work)
        run("dpkg", "-x", package, work / "tree")
        for name, source in BINARIES.items():
            staged = work / name
            shutil.copyfile(work / "tree" / source, staged)
            staged.chmod(0o644)
            staged.replace(folder / name)
        (folder / "VERSION").write_text(package.name.split("_")[1] + "\n")


def _download(work: Path) -> Path:
    sources = work / "sources.list.d"
    for part in (sources, work / "lists" / "partial", work / "cache" / "archives" / "partial"):
        part.mkdir(parents=True)
    (sources / "suite.list").write_text(_source_line())
    options = [
        "-o", "Dir::Etc::sourcelist=/dev/null",
        "-o", f"Dir::Etc::sourceparts={sources}",
        "-o", f"Dir::State::lists={work / 'lists'}",
        "-o", f"Dir::Cache={work / 'cache'}",
        "-o", "APT::Sandbox::User=root",
        "-o", "Acquire::Languages=none",
        "-o", "Acquire::Retries=3",
    ]  # fmt: skip
    try:
        run("apt-get", *options, "update", "--error-on=any", cwd=work, timeout=600)
        run("apt-get", *options, "download", PACKAGE, cwd=work, timeout=600)
    except CommandError as error:
        raise UnavailableError(
            f"iPXE could not be downloaded from this machine's Debian mirror: {error.message}",
            hint=f"put {' and '.join(BINARIES)} into {work.parent} by hand",
        ) from error
    found = list(work.glob(f"{PACKAGE}_*.deb"))
    if len(found) != 1:
        raise UnavailableError(f"apt-get download {PACKAGE} left {len(found)} packages")
    return found[0]


def _source_line() -> str:
    """The machine's own mirror of Debian's main archive, for our suite."""
    form = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(SIGNED_BY)"
    listing = run("apt-get", "indextargets", "--no-release-info", "--format", form, "Created-By: Packages").stdout
    for line in listing.splitlines():
        words = line.split()
        if len(words) >= 3 and words[2] == "main" and words[0].rstrip("/").endswith("/debian"):
            option = f"[signed-by={words[3]}] " if len(words) > 3 and words[3].startswith("/") else ""
            return f"deb {option}{words[0]} {SUITE} main\n"
    raise NotFoundError(
        "this machine's apt has no mirror of Debian", hint=f"put {' and '.join(BINARIES)} into the folder by hand"
    )


def main() -> int:
    """Fetch into the folder named on the command line."""
    parser = argparse.ArgumentParser(prog="livemount.image.ipxe", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=default_folder())
    folder: Path = parser.parse_args().folder.absolute()
    try:
        fetch(folder)
    except LivemountError as error:
        print(f"livemount.image.ipxe: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
