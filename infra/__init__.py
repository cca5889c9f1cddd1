"""The Pulumi programs: the environment (`__main__.py`) and one mount (`mount.py`), over clouds (one file each)."""
