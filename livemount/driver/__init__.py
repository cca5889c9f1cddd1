"""The pseudo-disk: one virtual disk file per mount, served from private store, recall store and recall."""
