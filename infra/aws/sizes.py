"""Which instance type a machine of a copy gets: the smallest that has its processors and memory.

Only types on Nitro with ENA, for which iPXE has a driver, and which start by BIOS and UEFI. Vendor's data of the
general, compute and memory families of the sixth generation, and of small burstable types.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from livemount.core.errors import UnsupportedError
from livemount.core.machine import MachineDescription

_FAMILIES = {"c6i": 2, "m6i": 4, "r6i": 8}
"""GiB of memory a processor."""
_CPUS = {
    "large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "12xlarge": 48, "16xlarge": 64,
    "24xlarge": 96, "32xlarge": 128,
}  # fmt: skip
_SMALL = {"t3.micro": 1, "t3.small": 2}
"""GiB of memory; all have two processors."""


@dataclass(frozen=True)
class Size:
    """An instance type."""

    name: str
    cpus: int
    memory_mib: int


def sizes() -> Iterator[Size]:
    """All that are considered."""
    for name, memory in _SMALL.items():
        yield Size(name, 2, memory << 10)
    for suffix, cpus in _CPUS.items():
        for family, memory in _FAMILIES.items():
            yield Size(f"{family}.{suffix}", cpus, cpus * memory << 10)


def size_for(machine: MachineDescription) -> Size:
    """The type with the fewest processors, then the least memory. Raises `UnsupportedError` where none is enough."""
    if machine.architecture != "x86_64":
        raise UnsupportedError(f"machines of {machine.architecture} cannot be mounted in AWS", hint="only x86_64 can")
    fit = [size for size in sizes() if size.cpus >= machine.cpus and size.memory_mib >= machine.memory_mib]
    if not fit:
        raise UnsupportedError(f"no instance type has {machine.cpus} processors and {machine.memory_mib} MiB")
    return min(fit, key=lambda size: (size.cpus, size.memory_mib))
