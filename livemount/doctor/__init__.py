"""Says what a machine lacks to run live mounts, and how to get it."""

from livemount.doctor.api import Check, checks

__all__ = ["Check", "checks"]
