"""Live mount: boot a virtual machine in a cloud straight from its backup copy, without restoring it first."""

__version__ = "0.1.0"
