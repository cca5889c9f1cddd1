"""File-level copies: a tree of files in a snapshot, presented as a disk that boots."""
