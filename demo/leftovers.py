"""What is left on this machine of mounts or of a whole environment: the proof that nothing is, asked of the kernel."""

from __future__ import annotations

import json
from pathlib import Path

from livemount.core.run import run
from livemount.core.settings import EnvironmentPaths, HostPaths


def _processes(root: Path) -> dict[int, str]:
    """The processes of an environment, by process id: those that name something below `root`, and its services' own."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        # The Ansible roles give each service this variable, and what it starts inherits it.
        if words and (str(root) in words or f"LIVEMOUNT_SERVICE={root}".encode() in environment):
            found[int(entry.name)] = words
    return found


def workers(paths: EnvironmentPaths) -> list[int]:
    """The process ids of the pseudo-disks' workers."""
    return [pid for pid, words in _processes(paths.root).items() if "livemount.driver.worker" in words]


def _fuse_mounts(root: Path) -> list[str]:
    fields = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [words[4] for words in fields if words[4].startswith(str(root))]


def _loop_devices(root: Path) -> list[str]:
    devices = json.loads(
        run("losetup", "--list", "--json", "--output", "NAME,BACK-FILE").stdout or '{"loopdevices": []}'
    )
    return [d["name"] for d in devices["loopdevices"] if str(d["back-file"]).startswith(str(root))]


def _files(folder: Path) -> list[str]:
    return sorted(str(entry) for entry in folder.iterdir()) if folder.is_dir() else []


def _folders(folder: Path) -> list[str]:
    return [name for name in _files(folder) if Path(name).is_dir()]


def of_mounts(paths: EnvironmentPaths) -> dict[str, list[str]]:
    """Everything that belongs to mounts (not to the environment they lived in), by kind. Empty lists: nothing."""
    host = HostPaths(paths.host)
    processes = _processes(paths.root)
    return {
        "virtual machines": [words for words in processes.values() if "qemu-system" in words.split()[0]],
        "driver workers": [str(pid) for pid in workers(paths)],
        "interfaces": [
            entry
            for entry in _files(paths.cloud / "interfaces")
            if json.loads(Path(entry).read_text())["kind"] == "machine"
        ],
        "targets": [line for line in _targets(host) if line.startswith("Target ")],
        "pseudo-disks mounted": _fuse_mounts(host.mounts),
        "loop devices": _loop_devices(paths.root),
        "private stores": _files(host.mounts),
        "recall stores": _folders(host.recall),
        "boot scripts": _files(host.scripts),
        "stacks": _files(paths.pulumi / "mounts"),
    }


def _taps(namespace: str) -> list[str]:
    """The taps of virtual machines in the network's namespace."""
    if not Path("/run/netns", namespace).exists():
        return []
    links = json.loads(run("ip", "-json", "-details", "link", "show", namespace=namespace).stdout)
    return [link["ifname"] for link in links if link.get("linkinfo", {}).get("info_kind") == "tun"]


def _targets(host: HostPaths) -> list[str]:
    if not host.target_socket.parent.exists():
        return []
    done = run(
        "tgtadm", "--lld", "iscsi", "--mode", "target", "--op", "show",
        env={"TGT_IPC_SOCKET": str(host.target_socket), "PATH": "/usr/sbin:/usr/bin"}, check=False,
    )  # fmt: skip
    return done.stdout.splitlines()


def of_environment(paths: EnvironmentPaths) -> dict[str, list[str]]:
    """Everything of an environment that lives outside of files: after `environment down` all of it is gone."""
    ours = (paths.network_namespace, paths.host_namespace)
    namespaces = [line.split()[0] for line in run("ip", "netns", "list").stdout.splitlines()]
    return {
        "processes": list(_processes(paths.root).values()),
        "network namespaces": [name for name in namespaces if name in ours],
        "mounts": _fuse_mounts(paths.root),
        "loop devices": _loop_devices(paths.root),
    }
