"""The agent's configuration, the URIs of agents, and what agents say of themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livemount.agent.config import RepositoryConfig, load, split_address
from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from livemount.media.agents import AgentUri, read_facts, with_sources

GOOD = """
listen: "[::1]:10810"
certificates: /etc/livemount-agent/tls
cache_quota: 5%
exports:
  web01: {source: "image:///vm/web01.qcow2", password_file: /etc/secret}
repositories:
  main: {repository: /srv/repository, password_file: /etc/password}
  vault: {repository: "restic+s3://s3.example:9000/vault/site", password_file: /etc/keys}
"""


def test_a_configuration_is_read(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(GOOD)
    found = load(file)
    assert found.address == ("::1", 10810)
    assert found.exports["web01"].source == "image:///vm/web01.qcow2"
    assert found.exports["web01"].cache
    for name, place in (("main", "restic:///srv/repository"), ("vault", "restic+s3://s3.example:9000/vault/site")):
        repository = found.repositories[name]
        uri = repository.uri("abcdef12/web01/disk0.raw")
        assert uri == f"{place}?snapshot=abcdef12&file=/web01/disk0.raw"
        assert repository.export(name, uri) == f"{name}/abcdef12/web01/disk0.raw"
        assert found.password_of(uri) == repository.password_file


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("certificates:", "certificate:", "certificates"),
        ("/etc/livemount-agent/tls", "tls", "no absolute path"),
        ('"[::1]:10810"', "10.0.0.5", "no address with a port"),
        ('"[::1]:10810"', "10.0.0.5:0", "no address with a port"),
        ("web01:", "../web01:", "exports"),
        ("web01:", ".status:", "exports"),
        ("image:///vm/web01.qcow2", "agent://a/b?certificates=/c", "does not serve another"),
        ("/srv/repository", "repository", "no absolute path"),
        ("restic+s3://s3.example:9000/", "s3://", "no repository|no source URI"),
        ("restic+s3://", "restic+s3://user:word@", "user or password"),
        ("5%", "some", "cache_quota"),
        ("exports:", "exports: [", "no YAML"),
    ],
)
def test_a_wrong_configuration_is_refused(old: str, new: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=says):
        load(file)
    with pytest.raises(NotFoundError):
        load(tmp_path / "missing.yaml")


@given(st.text(max_size=80))
def test_a_file_of_a_snapshot_is_in_its_repository(rest: str) -> None:
    config = RepositoryConfig(repository=Path("/srv/r"), password_file=Path("/p"))
    try:
        uri = config.uri(rest)
    except LivemountError:
        return
    assert uri.startswith("restic:///srv/r?snapshot=")
    assert config.export("main", uri) == f"main/{rest}"


@pytest.mark.parametrize("rest", ["", "abcdef12", "abcdef12/../x", "abcdef1/x", "ABCDEF12/x", "/etc/passwd"])
def test_what_is_no_file_of_a_snapshot_is_not_found(rest: str) -> None:
    with pytest.raises(NotFoundError):
        RepositoryConfig(repository=Path("/srv/r"), password_file=Path("/p")).uri(rest)


@given(st.text(max_size=40))
def test_addresses_are_read_or_refused(text: str) -> None:
    try:
        host, port = split_address(text)
    except ValueError:
        return
    assert host
    assert 0 < port < 65536


def test_uris_name_several_agents() -> None:
    text = "agent://10.0.0.5:10810,store2,[fd00::1]:1/main/abc/web01/disk0.raw?certificates=/c"
    uri = AgentUri.parse(text)
    assert uri.addresses == (("10.0.0.5", 10810), ("store2", 10809), ("fd00::1", 1))
    assert uri.export == "main/abc/web01/disk0.raw"
    assert AgentUri.parse(str(uri)) == uri
    assert AgentUri.parse("agent://a/x", Path("/d")).certificates == Path("/d")
    assert str(uri.of("web 02")).endswith("/web%2002?certificates=/c")


@pytest.mark.parametrize(
    "text",
    [
        "agent:///web01?certificates=/c",
        "agent://a/web01",
        "agent://a/web01?certificates=c",
        "agent://a,a/web01?certificates=/c",
        "agent://a,/web01?certificates=/c",
        "agent://user@a/web01?certificates=/c",
        "agent://a:0/web01?certificates=/c",
        "agent://a/../x?certificates=/c",
        "agent://a/x?certificates=/c&identity=y",
    ],
)
def test_a_wrong_uri_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        AgentUri.parse(text)


def test_an_agents_error_is_the_clients() -> None:
    for kind in (CorruptError, DeniedError, NotFoundError, UnavailableError):
        said = json.dumps({"livemount": 1, "error": int(kind.exit_code), "message": "why", "hint": "way out"})
        with pytest.raises(kind, match=r"web01: why \(way out\)"):
            read_facts(said, "web01")
    assert read_facts(json.dumps({"livemount": 1, "identity": "ab" * 16, "chunk_size": 4096}), "x").chunk_size == 4096


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
keys = st.sampled_from(["livemount", "identity", "chunk_size", "length", "error", "message", "hint"])


@given(st.text() | st.dictionaries(keys, json_values | st.just(1)).map(json.dumps))
def test_what_is_no_agent_is_corrupt(said: str) -> None:
    try:
        facts = read_facts(said, "web01")
    except LivemountError:
        return
    assert facts.length or facts.identity or "length" in said


def test_the_sources_of_all_disks_are_renamed() -> None:
    copy = {"id": "x", "source": "a", "disks": [{"file": "disk0.raw", "source": "a"}, {"source": "b"}]}
    assert with_sources(copy, str.upper) == {
        "id": "x",
        "source": "A",
        "disks": [{"file": "disk0.raw", "source": "A"}, {"source": "B"}],
    }
    assert with_sources({"source": "a"}, str.upper) == {"source": "A"}
