"""`livemount agent`: the media agent on another machine: its certificates, serving, what it does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from livemount.agent.exports import COUNTERS, STATUS
from livemount.agent.serve import serve as serve_agent
from livemount.cli.copies import Output
from livemount.cli.output import OutputFormat, bytes_text, count_text, print_json, print_line, print_table, stdout
from livemount.core.errors import LivemountError, UsageError
from livemount.core.settings import Settings
from livemount.media.agents import AgentUri, read_document
from livemount.media.certificates import Authority, Issued

app = typer.Typer(no_args_is_help=True, help="Copies that only another machine can read: the media agent there.")

SOON = timedelta(days=30)


@app.command()
def certificates(
    server: Annotated[str, typer.Option(metavar="NAME", help="Make the certificate of the agent of this name.")] = "",
    address: Annotated[
        list[str] | None, typer.Option(help="With --server: name or IP address that clients connect to; repeat it.")
    ] = None,
    client: Annotated[str, typer.Option(metavar="NAME", help="Make the certificate of this client.")] = "live-mount",
    folder: Annotated[Path | None, typer.Option(help="Where they are kept (else the environment's own).")] = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Make the certificates by which agents and their clients know each other, and the authority for them.

    Those that are good for a while are left as they are; run it again to renew them (after two thirds of their life of
    397 days). Take an agent's folder to the agent's machine, by a way that nobody else reads.

    Example: livemount agent certificates --server store1 --address 10.0.0.5
    """
    if bool(server) != bool(address):
        raise UsageError("an agent's certificate needs its name and address", hint="--server store1 --address 10.0.0.5")
    authority = Authority(folder or Settings().certificates)
    made: list[tuple[str, Issued]] = [("client", authority.client(client))]
    if server:
        made.append(("server", authority.server(server, address or [])))
    if output is OutputFormat.JSON:
        rows = [
            {"kind": kind, "folder": str(one.folder), "expires": one.expires.isoformat(), "renewed": one.renewed}
            for kind, one in made
        ]
        print_json(certificates=rows, authority_expires=authority.expires.isoformat())
        return
    for kind, one in made:
        state = "made" if one.renewed else "still good"
        stdout.print(f"{kind}: {one.folder} ({state}, until {one.expires:%Y-%m-%d})", highlight=False)


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="What to serve: a YAML file (docs/media-agent.md).")] = Path(
        "/etc/livemount-agent/agent.yaml"
    ),
) -> None:
    """Serve sources and repositories of this machine to live-mount hosts, until Ctrl-C.

    Example: livemount agent serve --config agent.yaml
    """
    serve_agent(config)


@app.command()
def status(
    agent: Annotated[str, typer.Argument(help="agent://HOST:PORT[,HOST:PORT]; else LIVEMOUNT_AGENT.")] = "",
    metrics: Annotated[bool, typer.Option("--metrics", help="Print counters in Prometheus' text format.")] = False,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Ask agents what they serve and have done. Exit code 5 when one does not answer.

    Example: livemount agent status agent://10.0.0.5:10809
    """
    settings = Settings()
    named = agent or settings.agent
    if not named:
        raise UsageError("name an agent", hint="livemount agent status agent://10.0.0.5:10809")
    uri = AgentUri.parse(named, settings.client_certificates).of(STATUS)
    found: dict[str, Any] = {}
    errors: dict[str, LivemountError] = {}
    for host, port in uri.addresses:
        try:
            found[f"{host}:{port}"] = read_document(uri, address=(host, port))
        except LivemountError as error:
            errors[f"{host}:{port}"] = error
    if output is OutputFormat.JSON:
        print_json(agents=found, errors={place: str(error) for place, error in errors.items()})
    elif metrics:
        for line in _metrics(found, errors):
            print_line(line)
    else:
        _show(found, errors)
    if errors:
        raise next(iter(errors.values()))


def _show(found: dict[str, Any], errors: dict[str, LivemountError]) -> None:
    rows: list[tuple[object, ...]] = []
    for place, said in found.items():
        counts, cache = said["counters"], said["cache"]
        expires = datetime.fromisoformat(said["certificate_expires"])
        note = "certificate ends soon" if expires - datetime.now(UTC) < SOON else ""
        rows.append(
            (
                place,
                ", ".join([*said["exports"], *(f"{name}/" for name in said["repositories"])]),
                len(said["open"]),
                f"{count_text(counts['reads'])} ({bytes_text(counts['bytes'])})",
                f"{count_text(counts['source_reads'])} ({bytes_text(counts['source_bytes'])})",
                f"{bytes_text(cache['used'])} of {bytes_text(cache['quota'])}",
                counts["errors"],
                f"{expires:%Y-%m-%d}",
                note,
            )
        )
    rows += [(place, "-", "-", "-", "-", "-", "-", "-", error.message) for place, error in errors.items()]
    columns = ["AGENT", "SERVES", "OPEN", "READS", "OF SOURCES", "CACHE", "ERRORS", "CERTIFICATE", "NOTE"]
    print_table(columns, rows, empty="no agents")


def _metrics(found: dict[str, Any], errors: dict[str, LivemountError]) -> list[str]:
    lines = ["# HELP livemount_agent_up Whether the agent answers", "# TYPE livemount_agent_up gauge"]
    lines += [f'livemount_agent_up{{agent="{place}"}} {int(place in found)}' for place in (*found, *errors)]
    for name, meaning in COUNTERS.items():
        lines += [f"# HELP livemount_agent_{name}_total {meaning}", f"# TYPE livemount_agent_{name}_total counter"]
        lines += [
            f'livemount_agent_{name}_total{{agent="{place}"}} {said["counters"][name]}' for place, said in found.items()
        ]
    for name, meaning in {"used": "Bytes in the cache", "quota": "Bytes that the cache may take"}.items():
        lines += [f"# HELP livemount_agent_cache_{name} {meaning}", f"# TYPE livemount_agent_cache_{name} gauge"]
        lines += [
            f'livemount_agent_cache_{name}{{agent="{place}"}} {said["cache"][name]}' for place, said in found.items()
        ]
    return lines
