"""What is changed on an image can be put back, and reads are of data only."""

from __future__ import annotations

from pathlib import Path

from bench.images import BLOCK, CHANGED, Change, blocks, data

MIB = 1 << 20


def sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        for place in (4, 40):
            file.seek(place * MIB)
            file.write(bytes([place]) * (8 * MIB))
    return path


def test_a_change_is_within_the_data_and_is_undone(tmp_path: Path) -> None:
    path = sparse(tmp_path / "disk.raw")
    before = path.read_bytes()
    change = Change.write(path, 7)
    after = bytearray(path.read_bytes())
    assert after != before
    assert sum(length for _, length in change.ranges) >= 16 * MIB * CHANGED
    assert all(offset % BLOCK == 0 for offset, _ in change.ranges)
    for offset, length in change.ranges:
        assert any(begin <= offset and offset + length <= begin + 8 * MIB for begin in (4 * MIB, 40 * MIB))
        after[offset : offset + length] = before[offset : offset + length]
    assert after == before
    change.undo(path)
    assert path.read_bytes() == before


def test_data_and_its_blocks(tmp_path: Path) -> None:
    assert data(sparse(tmp_path / "disk.raw")) == [(4 * MIB, 8 * MIB), (40 * MIB, 8 * MIB)]
    assert blocks([(90, 310), (1000, 99), (1150, 250)], 100) == [100, 200, 300, 1200, 1300]
