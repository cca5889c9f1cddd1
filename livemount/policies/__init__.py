"""Backup policies: what is backed up when, how long it is kept, how it is checked."""
