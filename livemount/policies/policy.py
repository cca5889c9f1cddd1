"""A policy: which machine is backed up, from what, when, how long its copies are kept, and how they are checked."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from livemount.core.machine import NAME_PATTERN, Firmware, Frozen, InterfaceDescription, MachineDescription, Word
from livemount.media.repository import Rules
from livemount.policies import schedule

DAY = 86400


def _absolute(place: str) -> str:
    if "://" not in place and not place.startswith("/"):
        raise ValueError("must be an absolute path or a URI: the service that runs it has no current folder")
    return place


def _zone(name: str) -> str:
    schedule.zone(name)
    return name


Cron = Annotated[str, AfterValidator(schedule.valid), Field(description="minute hour day month weekday")]
Place = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_absolute)]
Tag = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^,\x00-\x1f\x7f]+$")]


class Purpose(StrEnum):
    """What of a policy has a time of its own."""

    BACKUP = "backup"
    CHECK = "check"
    PRUNE = "prune"


class _Part(Frozen):
    model_config = ConfigDict(alias_generator=lambda field: field.replace("_", "-"), populate_by_name=True)


class Described(_Part):
    """What is told of the machine; what is not told is detected, or as `MachineDescription` has it."""

    firmware: Firmware | None = Field(default=None, description="what starts the machine; else detected")
    cpus: int | None = Field(default=None, ge=1, le=512)
    memory_mib: int | None = Field(default=None, ge=64)
    system: Word | None = Field(default=None, description="its operating system")
    hypervisor: Word | None = Field(default=None, description="where it runs")
    interfaces: tuple[InterfaceDescription, ...] | None = None

    def machine(self) -> MachineDescription:
        """As a copy remembers it."""
        return MachineDescription.model_validate(self.model_dump(exclude_none=True))


class CheckRule(_Part):
    """When the repository is checked, and how much of its data is read."""

    when: Cron
    sample: float = Field(default=0, ge=0, le=100, description="per cent of the stored data, chosen by chance")


class PruneRule(_Part):
    """When the room that no copy needs is given back."""

    when: Cron
    max_unused: int = Field(default=5, ge=0, le=100, description="per cent that may stay unused in packs")


class RetryRule(_Part):
    """What is done when the source or the repository is away: try again, each time after twice as long."""

    tries: int = Field(default=5, ge=1, le=100)
    wait_seconds: float = Field(default=60, gt=0, le=DAY, description="before the second try; later at most an hour")

    def wait(self, failed: int) -> float:
        """Seconds to wait after so many tries have failed."""
        return min(self.wait_seconds * 2.0 ** (failed - 1), max(self.wait_seconds, 3600.0))


class Policy(_Part):
    """One policy, as its YAML file says it."""

    name: str = Field(pattern=NAME_PATTERN, description="the policy's name")
    machine: str = Field(pattern=NAME_PATTERN, description="the machine whose copies these are")
    disks: tuple[Place, ...] = Field(default=(), description="images, devices or sources' URIs, in the machine's order")
    files: Place | None = Field(default=None, description="instead of disks: the folder a system's root is mounted on")
    boot: int = Field(default=0, ge=0, description="the number of the disk that the machine starts from")
    since: str | None = Field(default=None, description="the copy that dirty bitmaps begin with, where no name tells")
    password_file: Path | None = Field(default=None, description="the file with the secret of the sources")
    tags: tuple[Tag, ...] = ()
    description: Described = Described()
    read_all: bool = Field(default=False, description="read also what is known not to have changed")
    verify: bool = Field(default=False, description="read the disks again and compare")
    when: Cron
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(default="UTC", description="of all times in this policy")
    keep: Rules | None = Field(default=None, description="which copies are kept after each backup; else all")
    check: CheckRule | None = None
    prune: PruneRule | None = None
    retry: RetryRule = RetryRule()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if bool(self.disks) == (self.files is not None):
            raise ValueError("either disks or files must be given")
        if self.files is not None and (
            "://" in self.files or self.boot or self.since or self.read_all or self.verify or self.password_file
        ):
            raise ValueError("files is one folder, and boot, since, read-all, verify and password-file are of disks")
        if self.files is None and self.boot >= len(self.disks):
            raise ValueError(f"there is no disk {self.boot} to start from")
        if self.password_file is not None and not self.password_file.is_absolute():
            raise ValueError("password-file must be an absolute path")
        if self.keep is not None and not self.keep.model_dump(exclude_none=True):
            raise ValueError("keep says nothing: for example keep-daily: 7")
        return self

    def times(self) -> dict[Purpose, str]:
        """The cron expression of each purpose that it has."""
        rules = {Purpose.CHECK: self.check, Purpose.PRUNE: self.prune}
        return {Purpose.BACKUP: self.when} | {purpose: rule.when for purpose, rule in rules.items() if rule is not None}

    def dump(self) -> str:
        """As JSON, what is not told left out."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True)
