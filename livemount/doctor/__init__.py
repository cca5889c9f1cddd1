"""Says what a machine lacks to run live mounts, and how to get it."""
