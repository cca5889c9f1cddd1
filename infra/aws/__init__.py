"""The parts of an environment in AWS, one file each: network, storage and image, permissions, live-mount host."""
