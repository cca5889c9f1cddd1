"""The agent's cache: what it has is what was put, whatever is done to its files, and never more than its quota."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from livemount.agent.cache import BLOCK, Cache, Key
from livemount.core.errors import ConflictError

IDENTITY = "ab" * 32
QUOTA = 12 * BLOCK


def content(number: int, length: int) -> bytes:
    return (number.to_bytes(4, "little") * (-(-length // 4)))[:length]


steps = st.lists(
    st.tuples(st.sampled_from(["put", "get", "damage", "cut", "again"]), st.integers(0, 7), st.integers(0, 1 << 20)),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(steps, st.integers(1, 3 * BLOCK))
def test_it_gives_what_was_put_or_nothing(actions: list[tuple[str, int, int]], length: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "cache")
        cache = Cache(folder, QUOTA)
        put: set[int] = set()
        for action, number, where in actions:
            key: Key = (IDENTITY, 3 * BLOCK, number)
            file = folder / f"{IDENTITY}-{3 * BLOCK}" / str(number)
            if action == "put":
                cache.put(key, content(number, length))
                put.add(number)
            elif action == "get":
                offset = where % length
                count = min(length - offset, 1 + where % BLOCK)
                found = cache.get(key, length, offset, count)
                assert found in (None, content(number, length)[offset : offset + count])
                assert found is None or number in put
            elif action == "again":
                cache.close()
                (folder / f"{IDENTITY}-{3 * BLOCK}").mkdir(exist_ok=True)
                (folder / f"{IDENTITY}-{3 * BLOCK}" / "5.17.new").write_bytes(b"torn")
                cache = Cache(folder, QUOTA)
                assert not list(folder.rglob("*.new"))
            elif file.exists():
                data = bytearray(file.read_bytes())
                if action == "damage":
                    data[where % len(data)] ^= 0xFF
                    file.write_bytes(data)
                else:
                    file.write_bytes(data[: where % len(data)])
            used = sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("[0-9]"))
            assert used <= cache.used <= QUOTA
        cache.close()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 3 * (BLOCK + 4096))
    for number in range(3):
        cache.put((IDENTITY, BLOCK, number), content(number, BLOCK))
    assert cache.get((IDENTITY, BLOCK, 0), BLOCK, 0, BLOCK) == content(0, BLOCK)
    cache.put((IDENTITY, BLOCK, 3), content(3, BLOCK))
    assert [cache.get((IDENTITY, BLOCK, number), BLOCK, 0, 1) is None for number in range(4)] == [
        False,
        True,
        False,
        False,
    ]
    with pytest.raises(ConflictError, match="another agent"):
        Cache(tmp_path, BLOCK)
    cache.close()


def test_a_chunk_in_anothers_place_is_not_served(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    for number in range(2):
        cache.put((IDENTITY, BLOCK, number), content(number, BLOCK))
    folder = tmp_path / f"{IDENTITY}-{BLOCK}"
    (folder / "0").replace(folder / "1")
    assert cache.get((IDENTITY, BLOCK, 1), BLOCK, 0, BLOCK) is None
    cache.close()


def test_what_cannot_be_written_is_not_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 1 << 20)
    (tmp_path / f"{IDENTITY}-{BLOCK}").write_bytes(b"in the way")
    cache.put((IDENTITY, BLOCK, 0), content(0, BLOCK))
    assert (cache.used, cache.get((IDENTITY, BLOCK, 0), BLOCK, 0, 1)) == (0, None)
    cache.close()
