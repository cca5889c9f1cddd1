"""The fixed iPXE machine image: one small disk for all mounts, baked by Packer, named by its content."""
