"""Mounts declared by files in a folder, as they are kept in Git: read, compared with what is, applied."""
