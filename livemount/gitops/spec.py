"""What a file says of a mount."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field, model_validator

from livemount.core.duration import Duration
from livemount.core.machine import LONGEST_HOLD, NAME_PATTERN, Firmware, Frozen, Word
from livemount.workflow.states import LONGEST_LEASE, SHORTEST_LEASE

EXTEND_ONLY = frozenset({"ttl", "until", "description"})
"""The fields that may change while a mount runs; of all others only another mount can be."""


def _lease(duration: Duration) -> Duration:
    if not SHORTEST_LEASE <= duration.delta <= LONGEST_LEASE:
        raise ValueError("must be between 10s and 30d")
    return duration


def _hold(duration: Duration) -> Duration:
    if duration.seconds > LONGEST_HOLD:
        raise ValueError("must be between 0s and 1h")
    return duration


def _absolute(place: str) -> str:
    if "://" not in place:
        raise ValueError("must be a URI, for example image:///vm/web01.qcow2")
    return place


Lease = Annotated[Duration, AfterValidator(_lease)]
Hold = Annotated[Duration, AfterValidator(_hold)]
Uri = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_absolute)]
Reference = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?(@(latest|[0-9a-fA-F]{1,64}))?$")]


class MountSpec(Frozen):
    """A mount as a file, or somebody at the command line, asks for it."""

    model_config = ConfigDict(
        alias_generator=lambda field: field.rstrip("_").replace("_", "-"),
        populate_by_name=True,
        title="Mount",
        json_schema_extra={
            "allOf": [
                {"oneOf": [{"required": ["copy"]}, {"required": ["sources"]}]},
                {"oneOf": [{"required": ["ttl"]}, {"required": ["until"]}]},
            ]
        },
    )

    name: str = Field(pattern=NAME_PATTERN, description="the mount's name")
    copy_: Reference | None = Field(default=None, description="which copy: NAME (its newest), NAME@latest or NAME@ID")
    sources: tuple[Uri, ...] = Field(default=(), description="instead of a copy: URIs of images, archives, ...")
    password_file: Path | None = Field(default=None, description="the file with the secret of the sources")
    firmware: Firmware | None = Field(default=None, description="of the sources' machine; else as its disk tells")
    cpus: int | None = Field(default=None, ge=1, le=512, description="of the sources' machine")
    memory_mib: int | None = Field(default=None, ge=64, description="of the sources' machine")
    ttl: Lease | None = Field(default=None, description="how long it lives from when it is asked for: 15m, 2h, 1d")
    until: AwareDatetime | None = Field(default=None, description="or until when: a time with its zone")
    boot_timeout: Lease = Field(default=Duration("10m"), description="how long the guest may take to come up")
    prepare: bool = Field(default=True, description="run guest preparation")
    hold_io: Hold = Field(default=Duration("20s"), description="how long I/O waits for a source that is away")
    suspend: bool = Field(default=False, description="end it, and do not make it until this is false again")
    description: Word = Field(default="", description="for people")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.copy_) == bool(self.sources):
            raise ValueError("either copy or sources must be given")
        if self.copy_ and any((self.password_file, self.firmware, self.cpus, self.memory_mib)):
            raise ValueError("password-file, firmware, cpus and memory-mib go with sources; a copy knows its own")
        if (self.ttl is None) == (self.until is None):
            raise ValueError("either ttl or until must be given")
        if self.password_file is not None and not self.password_file.is_absolute():
            raise ValueError("password-file must be an absolute path")
        return self

    def dump(self) -> dict[str, Any]:
        """The fields that are not as by default, as plain JSON; without `suspend`, which is no property of a mount."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        if self.until is not None:
            data["until"] = self.until.astimezone(UTC).isoformat()  # the same time in another zone is no change
        return {field: value for field, value in data.items() if field != "suspend"}

    def expires(self, asked: datetime) -> datetime:
        """When a mount ends that is asked for at a time."""
        if self.until is not None:
            return self.until.astimezone(UTC)
        assert self.ttl is not None  # noqa: S101
        return asked + self.ttl.delta


def schema_text() -> str:
    """The JSON schema of a mount's file, as it is published in `docs/mount.schema.json`."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **MountSpec.model_json_schema(by_alias=True)}
    return json.dumps(schema, indent=2) + "\n"
