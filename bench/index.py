"""Memory and time of opening one copy in a repository of 10 TiB: the index of all its chunks is read for that.

The index is made up: as many chunks of 512 KiB as 10 TiB have, 64 of them a pack, none of which is there, in index
files as ours, beside one true copy that is read. They are not compressed, for everyone alike. With the first tenth of
it the peer is `restic ls` of the same copy, which reads the index too and little else; of the whole, which
took restic more than 88 s, it is ten times ours of a tenth. Peak is the largest resident size the process ever had;
what a mount keeps is its share of memory (PSS) when it has read the copy.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.poly1305 import Poly1305

from bench.harness import Figure, figure, interleave
from bench.hits import MIB, make_image
from bench.rig import Options, need, open_folder
from livemount.core.machine import Copy
from livemount.core.run import run
from livemount.core.secrets import new_secret
from livemount.media.repository import Repository

CHUNK = 512 << 10
CHUNKS = (10 << 40) // CHUNK
FILE_CHUNKS = 50_000
PACK_CHUNKS = 64
STORED = CHUNK // 2
"""Length of a stored chunk: it tells nothing but where the next one begins."""
IMAGE = 8 * MIB
NAME = "index"

OPEN = """
import json, re, sys
from pathlib import Path
from livemount.media.registry import open_source
source = open_source(sys.argv[1], Path(sys.argv[2]))
for offset in range(0, source.size, 1 << 20):
    source.read(offset, 1 << 20)
text = Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()
print(json.dumps([int(re.search(f"^{name}:\\\\s+(\\\\d+) kB", text, re.MULTILINE)[1]) for name in ("VmHWM", "Pss")]))
"""


@dataclass(frozen=True)
class Opened:
    """What opening took. MiB, seconds."""

    peak: float
    seconds: float
    kept: float = 0.0


class Key:
    """A repository's master key, as restic tells it."""

    def __init__(self, words: list[str]) -> None:
        told = json.loads(run(*words, "cat", "masterkey").stdout)
        self._encrypt = base64.b64decode(told["encrypt"])
        self._k = base64.b64decode(told["mac"]["k"])
        self._r = base64.b64decode(told["mac"]["r"])

    def seal(self, plain: bytes) -> bytes:
        """AES-256-CTR and Poly1305-AES, the nonce in front, the MAC behind."""
        nonce = os.urandom(16)
        text = Cipher(algorithms.AES(self._encrypt), modes.CTR(nonce)).encryptor().update(plain)
        masked = Cipher(algorithms.AES(self._k), modes.ECB()).encryptor().update(nonce)  # noqa: S305 (of the format)
        return nonce + text + Poly1305.generate_tag(self._r + masked, text)


def _packs(count: int) -> Iterator[str]:
    """The JSON of packs of made-up chunks."""
    places = [
        f'","type":"data","offset":{number * STORED},"length":{STORED},"uncompressed_length":{CHUNK}}}'
        for number in range(PACK_CHUNKS)
    ]
    for first in range(0, count, PACK_CHUNKS):
        here = min(PACK_CHUNKS, count - first)
        ids = os.urandom(32 * (here + 1)).hex()
        blobs = ",".join('{"id":"' + ids[64 * at + 64 : 64 * at + 128] + places[at] for at in range(here))
        yield f'{{"id":"{ids[:64]}","blobs":[{blobs}]}}'


def make_up(repository: Path, key: Key, chunks: int) -> None:
    """Write index files of so many chunks."""
    for first in range(0, chunks, FILE_CHUNKS):
        text = '{"packs":[' + ",".join(_packs(min(FILE_CHUNKS, chunks - first))) + "]}"
        sealed = key.seal(text.encode())
        (repository / "index" / hashlib.sha256(sealed).hexdigest()).write_bytes(sealed)


def ours(copy: Copy, password: Path) -> Opened:
    """Open the copy in a new process, and read it."""
    began = time.perf_counter()
    told = json.loads(run(sys.executable, "-c", OPEN, copy.source, password, timeout=600).stdout)
    return Opened(told[0] / 1024, time.perf_counter() - began, told[1] / 1024)


def restic(words: list[str], copy: Copy) -> Opened:
    """Let restic list the copy."""
    began = time.perf_counter()
    process = subprocess.Popen([*words, "ls", copy.id], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return Opened(used.ru_maxrss / 1024, time.perf_counter() - began)


def measure(options: Options) -> Iterator[Figure]:
    """Peak, what is kept, and seconds."""
    need("restic")
    with open_folder(options.directory) as folder:
        password, image, place = folder / "password", folder / "disk0.raw", folder / "repository"
        password.touch(mode=0o600)
        password.write_text(new_secret())
        make_image(image, IMAGE)
        copy = Repository.init(place, password).backup(image, NAME)
        words = ["restic", "--repo", str(place), "--password-file", str(password), "--no-lock", "--no-cache"]
        key = Key(words)
        make_up(place, key, CHUNKS // 10)
        tenth = interleave(
            {"ours": lambda: ours(copy, password), "restic": lambda: restic(words, copy)}, options.rounds
        )
        make_up(place, key, CHUNKS - CHUNKS // 10)
        whole = interleave({"ours": lambda: ours(copy, password)}, options.rounds)["ours"]
    for name, mine, theirs, unit in (
        ("peak memory", "peak", "peak", "MiB"),
        ("memory kept by a mount", "kept", "peak", "MiB"),
        ("time to open and read", "seconds", "seconds", "s"),
    ):
        yield figure(
            f"index/1 TiB, {name}/restic",
            [getattr(value, mine) for value in tenth["ours"]],
            [getattr(value, theirs) for value in tenth["restic"]],
            unit=unit,
            peer_name="restic ls",
            lower_is_better=True,
        )
        yield figure(
            f"index/10 TiB, {name}",
            [getattr(value, mine) for value in whole],
            [10 * getattr(value, mine) for value in tenth["ours"]],
            unit=unit,
            peer_name="ten times 1 TiB",
            lower_is_better=True,
        )
