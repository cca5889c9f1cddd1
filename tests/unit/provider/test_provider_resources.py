"""Resources as the engine sees them: checks, differences, creations that fail."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import struct_pb2
from hypothesis import given
from hypothesis import strategies as st
from pulumi.provider.experimental import provider as api
from pulumi.provider.experimental.property_value import PropertyValue
from pulumi.runtime.rpc import UNKNOWN
from typing_extensions import override

from livemount.configure import roles_digest
from livemount.core.errors import (
    ConflictError,
    ExitCode,
    LivemountError,
    NoSpaceError,
    UnavailableError,
    UnsupportedError,
    UsageError,
    error_of,
)
from livemount.provider.problems import describe, parse
from livemount.provider.properties import from_plain, is_known, map_from_plain, map_to_plain, to_plain
from livemount.provider.provider import HalfMadeError, LivemountProvider, create
from livemount.provider.registry import RESOURCES, find
from livemount.provider.resource import Difference, Inputs, Resource, Values
from livemount.provider.resources.host_configuration import HostConfigurationInputs
from livemount.provider.resources.pseudo_disk import PseudoDiskInputs

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


OURS = [kind for kind in LivemountError.__subclasses__() if kind.__module__ == LivemountError.__module__]


@given(JSON)
def test_a_property_comes_back_as_it_was(value: Any) -> None:
    assert to_plain(PropertyValue.unmarshal(from_plain(value).marshal())) == value


def test_what_is_not_known_yet_survives_a_check() -> None:
    on_the_wire = struct_pb2.Value(string_value=UNKNOWN)
    values = map_to_plain({"address": PropertyValue.unmarshal(on_the_wire), "absent": PropertyValue.null()})
    assert values == {"address": UNKNOWN}
    assert not is_known(values)
    assert map_from_plain(values)["address"].marshal() == on_the_wire


@pytest.mark.parametrize("kind", OURS)
@pytest.mark.parametrize("hint", [None, "look at `livemount doctor`"])
def test_an_error_is_told_and_understood_again(kind: type[LivemountError], hint: str | None) -> None:
    error = kind("the disk: it is [full]\nreally", hint=hint)
    again = parse(describe(error))
    assert again is not None
    assert (type(again), again.message, again.hint) == (kind, error.message, hint)


@pytest.mark.parametrize("text", ["update failed", "[odd-kind] x", "", "resource [conflict] x"])
def test_other_texts_are_not_our_errors(text: str) -> None:
    assert parse(text) is None


def test_an_unknown_exit_code_is_a_plain_error() -> None:
    assert type(error_of(77, "x")) is LivemountError
    assert type(error_of(int(ExitCode.CONFLICT), "x")) is ConflictError


@pytest.mark.parametrize("token", sorted(RESOURCES))
def test_every_resource_of_the_registry_is_what_its_name_says(token: str) -> None:
    assert find(token).token == token


def test_an_unknown_resource_is_named() -> None:
    with pytest.raises(UnsupportedError, match="livemount:index:Nothing"):
        find("livemount:index:Nothing")


DISK = {
    "endpoint": "unix:///run/api.sock",
    "tokenFile": "/secrets/token",
    "mount": "web01",
    "source": "restic:/repository?snapshot=1",
    "disks": [],
    "address": "10.77.0.10",
    "firmware": "bios",
    "prepare": True,
    "holdSeconds": 20,
}
DISK_OUTPUTS = {"portal": "10.77.0.2:3260", "healthy": True, "size": 5}


def disk_diff(state: Values, news: Values) -> Difference:
    return find("livemount:index:PseudoDisk").diff({**DISK, **DISK_OUTPUTS, **state}, {**DISK, **news})


def test_equal_inputs_make_no_difference() -> None:
    assert disk_diff({}, {}) == Difference()


@pytest.mark.parametrize("name", ["source", "address", "mount", "firmware", "passwordFile"])
def test_a_changed_input_replaces_the_disk(name: str) -> None:
    news = {name: "uefi" if name == "firmware" else "/changed"}
    assert disk_diff({}, news) == Difference(replaces=[name])
    assert disk_diff(news, {}) == Difference(replaces=[name])


def test_another_hold_replaces_the_disk_but_not_one_of_an_earlier_version() -> None:
    assert disk_diff({}, {"holdSeconds": 60}) == Difference(replaces=["holdSeconds"])
    earlier = {key: value for key, value in {**DISK, **DISK_OUTPUTS}.items() if key != "holdSeconds"}
    disk = find("livemount:index:PseudoDisk")
    assert disk.diff(earlier, DISK) == Difference()
    assert disk.diff(earlier, {**DISK, "holdSeconds": 60}) == Difference(replaces=["holdSeconds"])


def test_the_hosts_request_holds_io_as_long_as_the_input_says() -> None:
    inputs = find("livemount:index:PseudoDisk").parse({**DISK, "holdSeconds": 60})
    assert isinstance(inputs, PseudoDiskInputs)
    assert inputs.request().hold_seconds == 60


def test_a_broken_disk_is_updated() -> None:
    assert disk_diff({"healthy": False}, {}) == Difference(updates=["healthy"])


def test_check_fills_in_defaults_and_refuses() -> None:
    disk = find("livemount:index:PseudoDisk")
    given_ = {key: DISK[key] for key in DISK if key not in ("firmware", "prepare", "holdSeconds")}
    assert disk.check(given_) == (DISK, [])
    values, wrong = disk.check({**DISK, "firmware": "coreboot", "holdSeconds": 3601, "colour": "red"})
    assert [name for name, _ in wrong] == ["firmware", "holdSeconds", "colour"]
    assert values["firmware"] == "coreboot"
    assert [name for name, _ in disk.check({})[1]] == ["endpoint", "tokenFile", "mount", "source", "address"]


def test_an_input_that_is_not_known_yet_is_not_wrong() -> None:
    machine = find("livemount:local:VirtualMachine")
    given_ = {"cloudFolder": "/c", "name": "a", "interface": "i", "image": "/i", "cpus": UNKNOWN}
    assert machine.check(given_) == (given_, [])


HOST = {
    "environment": "e",
    "home": "/home",
    "address": "10.77.0.2",
    "tokenFile": "/token",
    "guestTools": "/tools",
    "recallQuota": "50%",
    "keepRecallStores": False,
}


def test_the_hosts_recall_stores_and_variables_are_configured_in_place() -> None:
    host = find("livemount:index:HostConfiguration")
    made = {"rolesDigest": roles_digest(), "configured": True}
    earlier = {key: value for key, value in {**HOST, **made}.items() if key not in ("recallQuota", "keepRecallStores")}
    assert host.diff(earlier, HOST) == Difference()
    asked = {**HOST, "recallQuota": "200GiB", "keepRecallStores": True, "variables": {"LIVEMOUNT_REPOSITORY": "/r"}}
    assert host.diff(earlier, asked) == Difference(updates=["keepRecallStores", "recallQuota", "variables"])
    inputs = host.parse(asked)
    assert isinstance(inputs, HostConfigurationInputs)
    assert (inputs.spec().recall_quota, inputs.spec().keep_recall_stores) == ("200GiB", True)
    assert inputs.spec().variables == {"LIVEMOUNT_REPOSITORY": "/r"}
    assert [name for name, _ in host.check({**HOST, "recallQuota": "much"})[1]] == ["recallQuota"]
    broken = host.parse({**HOST, "variables": {"LIVEMOUNT_REPOSITORY": 'a"b'}})
    assert isinstance(broken, HostConfigurationInputs)
    with pytest.raises(UsageError, match="cannot stand in a unit"):
        broken.spec()


class ThingInputs(Inputs):
    """A resource of these tests."""

    name: str


@dataclass
class Thing(Resource[ThingInputs]):
    """Raises what it is told to, and remembers."""

    there: bool = False
    on_create: LivemountError | None = None
    on_delete: LivemountError | None = None
    deleted: list[str] = field(default_factory=list)

    token = "livemount:test:Thing"
    inputs = ThingInputs

    @override
    def id(self, inputs: ThingInputs) -> str:
        return inputs.name

    @override
    def create(self, inputs: ThingInputs) -> Values:
        if self.on_create:
            raise self.on_create
        return {"out": 1}

    @override
    def read(self, inputs: ThingInputs, outputs: Values) -> Values | None:
        return {"out": 1} if self.there else None

    @override
    def delete(self, inputs: ThingInputs, outputs: Values) -> None:
        self.deleted.append(inputs.name)
        if self.on_delete:
            raise self.on_delete


def test_a_creation_gives_inputs_and_outputs() -> None:
    assert create(Thing(), {"name": "a"}) == ("a", {"name": "a", "out": 1})


def test_a_failed_creation_is_taken_away() -> None:
    thing = Thing(on_create=NoSpaceError("full"))
    with pytest.raises(NoSpaceError):
        create(thing, {"name": "a"})
    assert thing.deleted == ["a"]


@pytest.mark.parametrize(
    "thing",
    [Thing(on_create=ConflictError("taken")), Thing(there=True, on_create=NoSpaceError("full"))],
    ids=["conflict", "was there"],
)
def test_what_is_someone_elses_is_not_deleted(thing: Thing) -> None:
    with pytest.raises(LivemountError):
        create(thing, {"name": "a"})
    assert thing.deleted == []


def test_what_cannot_be_taken_away_is_told_to_the_engine() -> None:
    thing = Thing(on_create=NoSpaceError("full"), on_delete=UnavailableError("gone"))
    with pytest.raises(HalfMadeError) as raised:
        create(thing, {"name": "a"})
    assert raised.value.id == "a"
    assert map_to_plain(raised.value.inputs) == {"name": "a"}
    assert raised.value.reasons[0] == "[no-space] full"


def test_the_provider_answers_the_engine() -> None:
    thing = Thing(there=True)
    provider = LivemountProvider(lambda _: thing)
    urn = "urn:pulumi:s::p::livemount:infra:Mount$livemount:test:Thing::a"
    properties = map_from_plain({"name": "a", "out": 1})

    diff = asyncio.run(
        provider.diff(api.DiffRequest(urn, "a", properties, map_from_plain({"name": "b"}), ignore_changes=[]))
    )
    assert (diff.changes, diff.replaces, diff.delete_before_replace) == (True, ["name"], True)
    ignored = asyncio.run(
        provider.diff(api.DiffRequest(urn, "a", properties, map_from_plain({"name": "b"}), ignore_changes=["name"]))
    )
    assert ignored.changes is False

    read = asyncio.run(provider.read(api.ReadRequest(urn, "a", properties, {})))
    assert (read.resource_id, map_to_plain(read.properties)) == ("a", {"name": "a", "out": 1})
    thing.there = False
    assert asyncio.run(provider.read(api.ReadRequest(urn, "a", properties, {}))).resource_id == ""
    with pytest.raises(UnsupportedError, match="imported"):
        asyncio.run(provider.read(api.ReadRequest(urn, "a", {}, {})))


def test_the_environments_file_is_there_while_it_is_up(tmp_path: Path) -> None:
    resource = find("livemount:index:EnvironmentFile")
    inputs = resource.parse({"path": str(tmp_path / "e" / "environment.json"), "values": {"name": "local"}})
    assert resource.read(inputs, {}) is None
    resource.create(inputs)
    assert resource.read(inputs, {}) == {}
    (tmp_path / "e" / "environment.json").write_text("{}")
    assert resource.read(inputs, {}) is None
    resource.delete(inputs, {})
    resource.delete(inputs, {})
    assert list((tmp_path / "e").iterdir()) == []


def test_a_machine_image_is_gone_when_its_bytes_changed(tmp_path: Path) -> None:
    resource = find("livemount:index:MachineImage")
    inputs = resource.parse({"imagesFolder": str(tmp_path), "ipxeFolder": "/none"})
    assert resource.read(inputs, {}) is None
    image = tmp_path / "image.raw"
    image.write_bytes(b"")
    outputs = {"path": str(image), "digest": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
    (tmp_path / "record.json").write_text(f'{{"digest": "{outputs["digest"]}"}}')
    assert resource.read(inputs, outputs) == outputs
    image.write_bytes(b"x")
    assert resource.read(inputs, outputs) is None
    resource.delete(inputs, outputs)
    assert list(tmp_path.iterdir()) == []
