"""The archive of the project's code."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

from livemount.provider.resources.host_code import archive


def names(data: bytes) -> dict[str, int]:
    """Of the files in an archive, with their modes."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(data))) as tar:
        return {entry.name: entry.mode for entry in tar}


def test_the_same_files_are_the_same_bytes_whatever_their_times(tmp_path: Path) -> None:
    for part in ("setup", "livemount", "livemount/__pycache__", "native/target", "tests"):
        (tmp_path / part).mkdir(parents=True)
    files = (
        "setup/run",
        "livemount/a.py",
        "livemount/__pycache__/a.pyc",
        "livemount/b.so",
        "native/target/x",
        "tests/t.py",
    )
    for name in files:
        (tmp_path / name).write_text(name)
    (tmp_path / "setup/run").chmod(0o755)
    first = archive(tmp_path)
    assert names(first) == {"livemount/a.py": 0o644, "setup/run": 0o755}
    os.utime(tmp_path / "livemount/a.py", (1, 1))
    assert archive(tmp_path) == first
    (tmp_path / "livemount/a.py").write_text("another")
    assert archive(tmp_path) != first
