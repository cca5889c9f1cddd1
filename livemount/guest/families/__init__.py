"""The guest families: who knows how to prepare what is on a disk. A new family is a file here and a line in `FAMILIES`."""

from __future__ import annotations

from livemount.guest.families import linux
from livemount.guest.families.family import Family, Job

FAMILIES: tuple[Family, ...] = (linux.FAMILY,)

__all__ = ["FAMILIES", "Family", "Job"]
