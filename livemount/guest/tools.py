"""The programs that guest preparation puts into a guest: static busybox, and Debian's iSCSI initiator with its libraries.

They are fetched as packages and unpacked, never installed on the host. A folder is made under another name and then
renamed, so it is there whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from livemount.core.errors import LivemountError, NotFoundError
from livemount.core.run import run
from livemount.core.settings import Settings
from livemount.guest.cpio import Entry, archive, compress

LOADER = "/lib64/ld-linux-x86-64.so.2"
LIBRARIES = ("/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu")
PROGRAMS = ("/sbin/iscsid", "/sbin/iscsistart")
PACKAGES = ("busybox-static", "open-iscsi")
HOME_IN_INITRD = "livemount"
CONFIGURATION = {
    "etc/passwd": "root:x:0:0:root:/:/busybox\n",
    "etc/group": "root:x:0:\n",
}


@dataclass(frozen=True)
class GuestTools:
    """An unpacked tools folder; `GuestTools.default()` is the one the set-up makes."""

    folder: Path

    @staticmethod
    def default() -> GuestTools:
        """The folder in the cache."""
        return GuestTools(Settings().cache / "guest-tools")

    @property
    def busybox(self) -> Path:
        """A static busybox."""
        return self.folder / "busybox"

    @property
    def base_segment(self) -> Path:
        """An initrd segment (gzip) with what every guest gets: busybox and the initiator's small root."""
        return self.folder / "base.cpio.gz"

    def check(self) -> None:
        """Raise `NotFoundError` when the folder is not there or not whole."""
        if not (self.busybox.exists() and self.base_segment.exists()):
            raise NotFoundError(
                f"the tools for guests are not in {self.folder}",
                hint=f"python -m livemount.guest.tools {self.folder}",
            )


def _recipe_digest() -> str:
    recipe = Path(__file__).read_bytes() + (files("livemount.guest") / "files" / "iscsid.conf").read_bytes()
    return hashlib.sha256(recipe).hexdigest()


def fetch(folder: Path) -> GuestTools:
    """Make the tools folder from the machine's own package sources; nothing happens when it is up to date.

    Raises `LivemountError` when a package cannot be had.
    """
    tools = GuestTools(folder)
    stamp = folder / "recipe"
    if stamp.exists() and stamp.read_text() == _recipe_digest():
        return tools
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        work = Path(name)
        packages, unpacked, made = work / "packages", work / "unpacked", work / "made"
        for path in (packages, unpacked, made):
            path.mkdir()
        run("apt-get", "-o", "APT::Sandbox::User=root", "download", *_with_libraries(PACKAGES), cwd=packages)
        for package in sorted(packages.glob("*.deb")):
            run("dpkg", "-x", package, unpacked)
        _build(unpacked, made)
        (made / "recipe").write_text(_recipe_digest())
        made.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        made.rename(folder)
    return tools


def _with_libraries(packages: tuple[str, ...]) -> list[str]:
    """The packages and the library packages they depend on, directly or not."""
    found: set[str] = set()
    wanted = set(packages)
    while wanted:
        found |= wanted
        lines = run("apt-cache", "depends", "--important", *sorted(wanted)).stdout.splitlines()
        names = {line.split(": ", 1)[1] for line in lines if line.strip(" |").startswith(("Depends: ", "PreDepends: "))}
        wanted = {name for name in names if name.startswith("lib")} - found
    return sorted(found)


def _build(unpacked: Path, made: Path) -> None:
    busybox = unpacked / "bin/busybox"
    programs = {name: unpacked / name.lstrip("/") for name in PROGRAMS}
    for path in (busybox, *programs.values()):
        if not path.is_file():
            raise LivemountError(f"the package sources of this machine have no {path.relative_to(unpacked)}")
    shutil.copy(busybox, made / "busybox")
    (made / "busybox").chmod(0o755)

    root = f"{HOME_IN_INITRD}/root"
    entries = [Entry.file(f"{root}/busybox", busybox.read_bytes(), 0o755)]
    for name, path in programs.items():
        entries.append(Entry.file(f"{root}{name}", path.read_bytes(), 0o755))
    loader = (unpacked / LOADER.lstrip("/")).resolve()
    entries.append(Entry.file(f"{root}{LOADER}", loader.read_bytes(), 0o755))
    for name, path in sorted(_libraries(unpacked, list(programs.values())).items()):
        entries.append(Entry.file(f"{root}{LIBRARIES[0]}/{name}", path.read_bytes(), 0o644))
    for name, text in CONFIGURATION.items():
        entries.append(Entry.file(f"{root}/{name}", text.encode(), 0o644))
    settings = (files("livemount.guest") / "files" / "iscsid.conf").read_bytes()
    entries.append(Entry.file(f"{root}/etc/iscsi/iscsid.conf", settings, 0o600))
    (made / "base.cpio.gz").write_bytes(compress(archive(entries), 9))


def _libraries(unpacked: Path, programs: list[Path]) -> dict[str, Path]:
    """The shared libraries the programs need, by soname, as their own loader finds them in the unpacked packages."""
    loader = unpacked / LOADER.lstrip("/")
    folders = ":".join(str(unpacked / folder.lstrip("/")) for folder in LIBRARIES)
    found: dict[str, Path] = {}
    for program in programs:
        listed = run(loader, "--inhibit-cache", "--library-path", folders, "--list", program).stdout
        for line in listed.splitlines():
            soname, arrow, rest = line.strip().partition(" => ")
            if not arrow or soname.startswith("/"):
                continue
            path = Path(rest.split(" (")[0])
            if not path.is_relative_to(unpacked):
                raise LivemountError(f"{program.name} needs {soname}, which no fetched package holds")
            found[soname] = path
    return found


def main() -> None:
    """`python -m livemount.guest.tools [FOLDER]`: fetch the tools that guest preparation puts into guests."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=GuestTools.default().folder)
    try:
        print(fetch(parser.parse_args().folder).folder)
    except LivemountError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
