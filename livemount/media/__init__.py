"""The media agent: copies, sources and the repository (restic format)."""
