"""The client of the host's API over a real socket."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemount.core.errors import ConflictError, DeniedError, NotFoundError, UnavailableError, UsageError
from livemount.core.machine import Firmware
from livemount.host.api import PseudoDiskRequest
from livemount.host.client import HostClient
from tests.integration.provider.conftest import Host

pytestmark = pytest.mark.integration


def request(source: str = "file:///a") -> PseudoDiskRequest:
    return PseudoDiskRequest(source=source, address="10.77.0.10", firmware=Firmware.BIOS)


def test_a_disk_is_made_listed_and_deleted(host: tuple[Host, Path, Path]) -> None:
    _, socket, token = host
    with HostClient(f"unix://{socket}", token) as client:
        made = client.put_pseudo_disk("web01", request())
        assert made.request == request()
        assert client.get_pseudo_disk("web01") == made
        assert client.list_pseudo_disks() == [made]
        client.delete_pseudo_disk("web01")
        client.delete_pseudo_disk("web01")
        with pytest.raises(NotFoundError, match="no mount 'web01'"):
            client.get_pseudo_disk("web01")


def test_the_hosts_error_arrives_as_it_was_raised(host: tuple[Host, Path, Path]) -> None:
    _, socket, token = host
    with HostClient(f"unix://{socket}", token) as client:
        client.put_pseudo_disk("web01", request())
        with pytest.raises(ConflictError) as raised:
            client.put_pseudo_disk("web01", request("file:///b"))
    assert raised.value.hint == "unmount it"


# httpcore does not close the socket of a failed connect; the garbage collector does, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    with HostClient(f"unix://{tmp_path}/no.sock") as client, pytest.raises(UnavailableError, match="cannot be reached"):
        client.health()


def test_an_answer_that_is_no_problem_of_ours(host: tuple[Host, Path, Path]) -> None:
    _, socket, token = host
    with HostClient(f"unix://{socket}", token) as client, pytest.raises(UnavailableError, match="answered HTTP 404"):
        client.health()


@pytest.mark.parametrize("endpoint", ["http://10.77.0.2:80", "unix:", "/run/api.sock", "https://"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(UsageError, match="no endpoint"):
        HostClient(endpoint)


def test_a_token_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DeniedError, match="does not exist"):
        HostClient("unix:///x", tmp_path / "token")
