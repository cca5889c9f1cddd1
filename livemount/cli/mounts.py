"""`livemount mount`, `mounts`, `unmount`: bringing a copy up as a machine, watching it, ending it."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from livemount.cli.copies import Output, chosen_copy
from livemount.cli.inspect import show_inspection
from livemount.cli.output import OutputFormat, bytes_text, duration_text, print_json, print_table, stderr, stdout
from livemount.cli.parse import parse_duration, parse_hold
from livemount.cli.watch import watch as show_live
from livemount.core.errors import LivemountError, UsageError
from livemount.core.machine import HOLD_SECONDS, Firmware, is_name
from livemount.core.settings import Settings
from livemount.manager.client import Manager
from livemount.manager.environment import Environment
from livemount.manager.progress import follow
from livemount.media.foreign import Wanted
from livemount.workflow.states import MountOrder, MountRecord, MountState


class MountFailedError(LivemountError):
    """A mount did not come up."""


def _mount_name(copy_name: str, wanted: str | None) -> str:
    name = wanted or f"{copy_name[:30]}-{secrets.token_hex(2)}"
    if not is_name(name):
        raise UsageError(f"{name!r} cannot name a mount", hint="1 to 40 lower-case letters, digits and hyphens")
    return name


def _json(record: MountRecord) -> dict[str, object]:
    """A record for programs: its data and what follows from it."""
    data = record.model_dump(mode="json", by_alias=True)
    return {"mount": record.order.mount, "state": record.state, "reason": record.reason, **data}


def mount(
    copy: Annotated[str, typer.Argument(help="Which copy: NAME (its newest), NAME@latest or NAME@ID.")] = "",
    source: Annotated[
        list[str] | None,
        typer.Option(help="Instead of a copy: the URI of an image, an archive, ...; again for each further disk."),
    ] = None,
    password_file: Annotated[Path | None, typer.Option(help="The file with the secret of the source.")] = None,
    firmware: Annotated[Firmware | None, typer.Option(help="Of a source (else as its disk tells).")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, max=512, help="Of a source's machine (else 1).")] = None,
    memory: Annotated[int | None, typer.Option(min=64, help="MiB of a source's machine (else 1024).")] = None,
    ttl: Annotated[str, typer.Option(help="How long the mount lives: 15m, 2h, 1d.")] = "2h",
    name: Annotated[str | None, typer.Option("--name", "-n", help="The mount's name (else one is made up).")] = None,
    boot_timeout: Annotated[str, typer.Option(help="How long the guest may take to come up.")] = "10m",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the guest is up.")] = True,
    prepare: Annotated[bool, typer.Option("--prepare/--no-prepare", help="Run guest preparation.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Mount nothing: say what would change (see `livemount inspect`).")
    ] = False,
    hold_io: Annotated[
        str, typer.Option(help="How long I/O waits for a source that is away before it fails: 0s to 1h.")
    ] = f"{HOLD_SECONDS:.0f}s",
    output: Output = OutputFormat.TABLE,
) -> None:
    """Boot a virtual machine straight from a copy, or from what a --source names. It is never changed.

    The mount ends by itself after its time to live, or by `livemount unmount`. Ctrl-C leaves it running.

    Example: livemount mount web01@latest --ttl 2h

    Example: livemount mount --source image:///vm/web01.qcow2 --name web01 --memory 2048
    """
    if bool(copy) == bool(source) or (copy and any((password_file, firmware, cpus, memory))):
        raise UsageError(
            "name a copy, or a --source", hint="--password-file, --firmware, --cpus, --memory go with --source"
        )
    if source and name is None:
        raise UsageError("a mount of a source needs a name", hint="--name web01")
    settings = Settings()
    lease = parse_duration(ttl)
    limit = parse_duration(boot_timeout)
    hold = parse_hold(hold_io)
    environment = Environment(settings).outputs()
    found, secret = chosen_copy(settings, copy, source, str(name), password_file, Wanted(firmware, cpus, memory))
    if dry_run:
        show_inspection(settings, found, secret, firmware, output)
        return
    order = MountOrder(
        mount=_mount_name(found.name, name),
        copy=found,
        password_file=secret,
        expires=datetime.now(UTC) + lease,
        boot_timeout=limit.total_seconds(),
        prepare=prepare,
        hold_seconds=hold.total_seconds(),
    )
    manager = Manager(settings.paths())
    try:
        manager.request(order)
        stderr.print(
            f"mount {order.mount} of {found.name}@{found.id[:8]}, ends {_local(order.expires)}", highlight=False
        )
        if not wait:
            stdout.print(order.mount, highlight=False)
            return
        began = datetime.now(UTC)
        for step in follow(manager, environment, order.mount):
            since = (step.time - began).total_seconds()
            stderr.print(f"  [cyan]{max(0.0, since):6.1f} s[/]  {step.text}", highlight=False)
        record = manager.record(order.mount)
    finally:
        manager.close()
    if record.error:
        raise MountFailedError(f"the mount {order.mount} failed: {record.error}", hint=record.hint)
    if record.state is not MountState.RUNNING:
        raise MountFailedError(f"the mount {order.mount} is over: {record.reason}")
    if output is OutputFormat.JSON:
        print_json(**_json(record))
    else:
        address = record.outputs.get("address", "?")
        stdout.print(f"{order.mount} is up at {address}; `livemount unmount {order.mount}` ends it", highlight=False)


def _local(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def mounts(
    ended: Annotated[bool, typer.Option("--all", "-a", help="Those that are over as well.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show their counters, live, until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="With --watch: seconds between looks.")] = 2,
    output: Output = OutputFormat.TABLE,
) -> None:
    """List the mounts: state, address, time left, how much was recalled and written.

    Example: livemount mounts --watch --interval 5
    """
    settings = Settings()
    if watch:
        show_live(settings, interval, output, ended=ended)
        return
    environment = Environment(settings)
    manager = Manager(settings.paths())
    try:
        records = manager.records(ended=ended)
    finally:
        manager.close()
    disks = environment.disks() if any(not r.state.final for r in records) else {}
    if output is OutputFormat.JSON:
        rows = []
        for record in records:
            disk = disks.get(record.order.mount)
            rows.append({**_json(record), "disk": disk.model_dump(mode="json") if disk else None})
        print_json(mounts=rows)
        return

    def row(record: MountRecord) -> tuple[str, ...]:
        disk = disks.get(record.order.mount)
        left = (record.order.expires - datetime.now(UTC)).total_seconds()
        return (
            record.order.mount,
            f"{record.order.copy_.name}@{record.order.copy_.id[:8]}",
            record.state,
            str(record.outputs.get("address", "")),
            "" if record.state.final else duration_text(left),
            f"{bytes_text(disk.stats.recalled_bytes)} ({disk.stats.recalled_bytes / disk.size:.1%})" if disk else "",
            bytes_text(disk.stats.private_bytes) if disk else "",
            "; ".join(disk.problems) if disk else record.reason if record.state.final else "",
        )

    print_table(
        ["MOUNT", "COPY", "STATE", "ADDRESS", "LEFT", "RECALLED", "WRITTEN", "NOTE"],
        (row(record) for record in records),
        empty="no mounts",
    )


def unmount(
    name: Annotated[str, typer.Argument(metavar="MOUNT", help="The mount's name (see `livemount mounts`).")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until nothing of it is left.")] = True,
    output: Output = OutputFormat.TABLE,
) -> None:
    """End a mount: virtual machine, target, pseudo-disk and what was written are deleted. The copy stays as it was."""
    manager = Manager(Settings().paths())
    try:
        manager.stop(name, "asked to end")
        record = manager.record(name)
        if wait:
            for record in manager.watch(name):
                if record.state.final:
                    break
    finally:
        manager.close()
    if wait and record.left:
        raise MountFailedError(f"the mount {name} is not wholly gone: {record.error}", hint=record.hint)
    if output is OutputFormat.JSON:
        print_json(**_json(record))
    else:
        stdout.print(f"{name}: {record.state} ({record.reason})", highlight=False)
