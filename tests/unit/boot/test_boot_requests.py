"""Reading the access log: rotated, cut off, hostile."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from livemount.boot.api import RequestKind
from livemount.boot.command import render_config
from livemount.boot.nginx import LINE_LIMIT, NginxBoot
from livemount.core.errors import UsageError
from livemount.core.settings import HostPaths

ADDRESS = "10.77.0.10"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def line(second: int, address: str = ADDRESS, uri: str = "/boot", status: int = 200) -> str:
    """A line as nginx writes it."""
    time = (START + timedelta(seconds=second)).isoformat()
    return json.dumps({"time": time, "address": address, "uri": uri, "status": status}) + "\n"


@pytest.fixture
def host(tmp_path: Path) -> HostPaths:
    """A host with an empty log folder."""
    paths = HostPaths(tmp_path)
    paths.log.mkdir()
    return paths


def test_requests_of_one_address_since_a_time(host: HostPaths) -> None:
    """Other addresses, earlier times and other paths do not count."""
    host.access_log.write_text(
        line(0) + line(5, status=404) + line(6, "10.77.0.11") + line(7, uri="/etc") + line(9, uri="/up", status=204)
    )
    found = NginxBoot(host).requests(ADDRESS, START + timedelta(seconds=5, milliseconds=300))
    assert [(request.kind, request.status) for request in found] == [(RequestKind.SCRIPT, 404), (RequestKind.UP, 204)]


def test_no_log_is_no_request(host: HostPaths) -> None:
    """Before nginx was started."""
    assert NginxBoot(host).requests(ADDRESS, START) == []


def test_rotated_logs_count_in_their_order(host: HostPaths) -> None:
    """Number 2 is older than number 1; a compressed one is left out."""
    host.access_log.write_text(line(3, status=203))
    Path(f"{host.access_log}.1").write_text(line(2, status=202))
    Path(f"{host.access_log}.2").write_text(line(1, status=201))
    Path(f"{host.access_log}.3.gz").write_bytes(b"\x1f\x8b")
    assert [request.status for request in NginxBoot(host).requests(ADDRESS, START)] == [201, 202, 203]


def test_a_cut_off_last_line_waits_for_its_rest(host: HostPaths) -> None:
    """It counts once it is whole."""
    host.access_log.write_text(line(1) + line(2)[:-1])
    assert len(NginxBoot(host).requests(ADDRESS, START)) == 1
    with host.access_log.open("a") as file:
        file.write("\n")
    assert len(NginxBoot(host).requests(ADDRESS, START)) == 2


@pytest.mark.parametrize(
    "junk",
    [
        b"\n",
        b"\xff\xfe\x00\n",
        b"[" * 3000 + b"\n",
        b"null\n",
        b'{"time":1e999,"address":"10.77.0.10","uri":"/boot","status":200}\n',
        b'{"time":"2026-01-02T03:04:06","address":"10.77.0.10","uri":"/boot","status":200}\n',
        b'{"time":"x","address":"10.77.0.10","uri":"/boot","status":200}\n',
        b"x" * LINE_LIMIT + line(1).encode(),
        b"x" * (5 * LINE_LIMIT + 17) + line(1).encode(),
        b"{" * LINE_LIMIT * 3 + b"\n",
    ],
)
def test_lines_that_are_not_ours_are_skipped(host: HostPaths, junk: bytes) -> None:
    """And the good one behind them is read."""
    host.access_log.write_bytes(junk + line(9).encode())
    assert [request.time for request in NginxBoot(host).requests(ADDRESS, START)] == [START + timedelta(seconds=9)]


@pytest.mark.parametrize("address", ["../../etc/passwd", "10.77.0.010", "10.77.0.1/..", "", "::1", "10.77.0.10\n"])
def test_only_addresses_name_files(host: HostPaths, address: str) -> None:
    """No path is made of anything else."""
    boot = NginxBoot(host)
    with pytest.raises(UsageError):
        boot.withdraw(address)
    with pytest.raises(UsageError):
        boot.requests(address, START)


def test_the_configuration_stays_below_the_host(host: HostPaths) -> None:
    """Every path in it, so that several nginx coexist."""
    words = render_config(host, "10.77.0.2").replace(";", " ").split()
    paths = [word for word in words if word.startswith(os.sep) and len(word) > 1 and word not in ("/boot", "/up")]
    assert paths
    assert all(path.startswith(str(host.root)) for path in paths), paths


@pytest.mark.parametrize("root", ["/srv/a b", "/srv/a;b", "/srv/$x", "/srv/a{"])
def test_paths_nginx_would_misread_are_refused(root: str) -> None:
    """They would end up as directives."""
    with pytest.raises(UsageError):
        render_config(HostPaths(Path(root)), "10.77.0.2")
