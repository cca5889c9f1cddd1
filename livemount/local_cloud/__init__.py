"""A cloud on this machine: networks are namespaces and bridges, virtual machines are QEMU processes."""
