"""`make demo`: a guest is made, backed up, mounted, proven and ended; see README.md for what it prints."""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

from demo import leftovers
from demo.guest import build_guest
from demo.show import DemoError, Walk, console, fail
from livemount.core.errors import LivemountError
from livemount.core.settings import Settings
from livemount.local_cloud.console import Console
from livemount.media.repository import Repository
from livemount.workflow.stack import MountStack, mount_stacks, prepare, pulumi_environment

ROOT = Path(__file__).resolve().parent.parent
STACK_FILE = ROOT / "Pulumi.demo.yaml"
"""Where Pulumi keeps the salt of the stack's secrets."""
MIB = 2**20


def main() -> None:
    """Walk through it all, and take everything away in any case."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--home", type=Path, default=Path("/var/lib/livemount-demo"), help="where it keeps its files")
    parser.add_argument("--keep", action="store_true", help="leave the environment up at the end, to go on by hand")
    options = parser.parse_args()
    settings = Settings(home=options.home, environment="demo")
    walk = Walk(pulumi_environment(settings.paths(), settings), ROOT)
    try:
        clear(walk, settings)
        demonstrate(walk, settings, keep=options.keep)
    except (DemoError, LivemountError) as error:
        console.print(f"what was made is left in {settings.home} for a look; the next `make demo` takes it away first")
        fail(error)


def clear(walk: Walk, settings: Settings) -> None:
    """Take away what an earlier demonstration that failed, or was told to keep it, has left."""
    paths = settings.paths()
    STACK_FILE.unlink(missing_ok=True)
    if not settings.home.exists():
        return
    console.print(f"taking away what an earlier demonstration has left in {settings.home}")
    for mount in mount_stacks(paths):
        MountStack(paths, settings, mount).destroy()
    walk.run("livemount", "environment", "down")
    shutil.rmtree(settings.home)


def demonstrate(walk: Walk, settings: Settings, *, keep: bool) -> None:
    """The steps."""
    paths = settings.paths()

    walk.step("A real machine to protect: a Debian disk, made here, without any iSCSI initiator in it")
    image = build_guest(settings.cache / "guests", hostname="web01", cache=settings.cache)
    walk.fact("disk", f"{image} ({image.stat().st_size // MIB} MiB, {image.stat().st_blocks * 512 // MIB} MiB in use)")

    walk.step("Its backup: a copy in a repository (restic format, encrypted, deduplicated, holes skipped)")
    walk.run("livemount", "repository", "init")
    walk.run("livemount", "backup", str(image), "--name", "web01", "--memory", "768")
    walk.run("livemount", "copies")
    repository = Repository.open(settings.repository_path, settings.repository_password)
    copy = repository.find("web01@latest")
    before = repository.digest(copy)
    walk.fact("SHA-256 of the copy's bytes", before)

    walk.step("The environment: network, live-mount host by Ansible, machine image by Packer, all by `pulumi up`")
    prepare(paths)
    # The same as `livemount environment up`; Pulumi writes its encryption salt beside Pulumi.yaml.
    walk.run("pulumi", "stack", "select", "--create", settings.environment)
    walk.run("pulumi", "up", "--yes", "--skip-preview", "--color", "never")

    walk.step("The live mount: the machine boots straight from its copy")
    walk.run("livemount", "mount", "web01", "--name", "demo", "--ttl", "15m")

    walk.step("The proof, asked of the guest itself over its serial console")
    outputs = walk.ask("livemount", "mounts")["mounts"][0]["outputs"]
    ask_guest(walk, Console(Path(outputs["consoleSocket"]), Path(outputs["consoleLog"])))
    show_stores(walk, find_mount(walk, "demo"))
    walk.run("livemount", "mounts")
    walk.run("livemount", "check", "--read-data")
    after = repository.digest(copy)
    walk.fact("SHA-256 of the copy's bytes, after a boot and writes", after, after == before)

    walk.step("The end: one mount by command, a second one by its expiry")
    walk.run("livemount", "mount", "web01", "--name", "short", "--ttl", "40s", "--no-wait")
    walk.run("livemount", "unmount", "demo")
    wait_for_expiry(walk, "short")
    walk.run("livemount", "mounts", "--all")
    walk.nothing_left(leftovers.of_mounts(paths))

    if keep:
        console.print(
            f"\nthe environment stays up; use it with LIVEMOUNT_HOME={settings.home} LIVEMOUNT_ENVIRONMENT=demo"
        )
    else:
        walk.step("The environment goes too")
        walk.run("livemount", "environment", "down")
        walk.nothing_left(leftovers.of_environment(paths))
        shutil.rmtree(settings.home)
        STACK_FILE.unlink()
    walk.end()


def find_mount(walk: Walk, name: str) -> dict[str, Any]:
    """What `livemount mounts` says of one mount."""
    for mount in walk.ask("livemount", "mounts", "--all")["mounts"]:
        if mount["mount"] == name:
            found: dict[str, Any] = mount
            return found
    raise DemoError(f"`livemount mounts` does not know {name}")


def ask_guest(walk: Walk, guest: Console) -> None:
    """Ask the guest who it is and what its root disk is; write into it."""
    walk.fact("who are you", (name := guest.command("hostname", 60).strip()), name == "web01")
    walk.fact(
        "what are you",
        guest.command(". /etc/os-release; echo $PRETTY_NAME, Linux $(uname -r)", 60).strip(),
    )
    state = guest.command("systemctl is-system-running || true", 60).strip()
    walk.fact("systemd says", state, state in ("running", "degraded", "starting"))
    root = guest.command("findmnt -n -o SOURCE,FSTYPE /", 60).strip()
    walk.fact("root file system", root)
    disk = guest.command("readlink -f /sys/class/block/$(basename $(findmnt -n -o SOURCE /))", 60).strip()
    walk.fact("root disk's path in the kernel", disk, "/session" in disk)
    iqn = guest.command("cat /sys/class/iscsi_session/*/targetname | tail -n 1", 60).strip()
    walk.fact("iSCSI target it runs from", iqn, iqn.endswith(":demo"))
    has = guest.command("dpkg -s open-iscsi 2>/dev/null | grep '^Status:' || echo not installed", 60).strip()
    walk.fact("open-iscsi in the guest", has, "ok installed" not in has)
    guest.command("dd if=/dev/urandom of=/root/written-in-the-mount bs=1M count=8 2>/dev/null && sync", 60)
    walk.fact("wrote a file", guest.command("sha256sum /root/written-in-the-mount", 60).strip())


def show_stores(walk: Walk, mount: dict[str, Any]) -> None:
    """How much was recalled, and that the writes are in the private store."""
    stats = mount["disk"]["stats"]
    size, stored = stats["size"], mount["order"]["copy"]["stored"]
    recalled, private = stats["recalled_bytes"], stats["private_bytes"]
    walk.fact(
        "recalled from the copy",
        f"{recalled / MIB:.1f} MiB = {recalled / size:.1%} of the disk, {recalled / stored:.1%} of what is in use",
        0 < recalled < stored,
    )
    walk.fact("written, all of it in the private store", f"{private / MIB:.1f} MiB", private >= 8 * MIB)


def wait_for_expiry(walk: Walk, name: str) -> None:
    """Wait until the mount has ended by itself."""
    deadline = time.monotonic() + 180
    while (mount := find_mount(walk, name))["state"] not in ("ended", "failed"):
        if time.monotonic() > deadline:
            raise DemoError(f"the mount {name} is still {mount['state']}")
        time.sleep(1)
    walk.fact(f"the mount {name}", f"{mount['state']}: {mount['reason']}", mount["state"] == "ended")


if __name__ == "__main__":
    main()
