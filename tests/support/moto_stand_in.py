"""moto's server, a stand-in for the APIs of AWS: S3, EBS direct and those they need, in memory, on a free port.

Run as a program it is that server, whose EBS snapshots have blocks of the size that is given (moto's own are of 512
bytes, those of AWS of 512 KiB).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.support.suspend import suspend

ACCESS_KEY = "testing"
SECRET_KEY = "not-a-secret"
REGION = "eu-central-1"
EBS_BLOCK = 512 << 10
START_SECONDS = 60.0

Answer = tuple[int, dict[str, Any], str]


class MotoStandIn:
    """The server. Any access key is as good as `ACCESS_KEY`."""

    def __init__(self, ebs_block: int = EBS_BLOCK) -> None:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port: int = found.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        environment["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"  # over a thousand, each with a snapshot
        words = [sys.executable, __file__, str(self.port), str(ebs_block)]
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError("moto does not answer")
            time.sleep(0.05)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def hang(self) -> None:
        """Take connections and say nothing, until `go_on`."""
        suspend(self._process.pid)

    def go_on(self) -> None:
        """Answer again."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, with all it holds."""
        self._process.kill()
        self._process.wait()


def _serve(port: int, ebs_block: int) -> None:
    from moto.ebs.models import EBSBackend, EBSSnapshot
    from moto.ebs.responses import EBSResponse
    from moto.server import main

    make = EBSSnapshot.__init__

    def make_with_blocks(made: EBSSnapshot, *words: Any, **named: Any) -> None:
        make(made, *words, **named)
        made.block_size = ebs_block

    start = EBSBackend.start_snapshot

    def start_pending(backend: EBSBackend, *words: Any, **named: Any) -> EBSSnapshot:
        """A snapshot is of no volume, and pending until it is completed."""
        made = start(backend, *words, **named)
        snapshot = backend.ec2_backend.snapshots[made.snapshot_id]
        snapshot.status = "pending"
        del backend.ec2_backend.volumes[snapshot.volume.id]
        return made

    complete = EBSResponse.complete_snapshot

    def complete_checked(response: EBSResponse) -> Any:
        """AWS compares number and checksums of the blocks."""
        backend = response.ebs_backend
        made = backend.snapshots[response._get_param("SnapshotId")]
        whole = hashlib.sha256()
        for _, block in sorted(made.blocks.items()):
            data = block.block_data if isinstance(block.block_data, bytes) else block.block_data.encode("latin-1")
            digest = hashlib.sha256(data).digest()
            if len(data) != ebs_block or block.checksum != base64.b64encode(digest).decode():
                return _error(400, "ValidationException", "INVALID_BLOCK")
            whole.update(digest)
        if response.headers.get("x-amz-ChangedBlocksCount") != str(len(made.blocks)):
            return _error(400, "ValidationException", "INVALID_PARAMETER_VALUE")
        if response.headers.get("x-amz-Checksum") != base64.b64encode(whole.digest()).decode():
            return _error(400, "ValidationException", "INVALID_CHECKSUM")
        made.blocks = dict(sorted(made.blocks.items()))  # it lists them as they came
        backend.ec2_backend.snapshots[made.snapshot_id].status = "completed"
        return complete(response)

    def refusal(response: EBSResponse) -> Answer | None:
        """What AWS says and moto does not: that a snapshot is unknown, that a token is not the block's."""
        snapshot = response.ebs_backend.snapshots.get(response._get_param("SnapshotId"))
        if snapshot is None:
            return _error(404, "ResourceNotFoundException", "SNAPSHOT_NOT_FOUND")
        token = response._get_param("BlockToken")
        if token is not None and snapshot.blocks[int(response._get_param("BlockIndex"))].block_token != token:
            return _error(400, "ValidationException", "INVALID_BLOCK_TOKEN")
        return None

    def checked(operation: Callable[[EBSResponse], Any]) -> Callable[[EBSResponse], Any]:
        return lambda response: refusal(response) or operation(response)

    EBSSnapshot.__init__ = make_with_blocks  # type: ignore[method-assign, assignment]
    EBSBackend.start_snapshot = start_pending  # type: ignore[method-assign, assignment]
    EBSResponse.complete_snapshot = complete_checked  # type: ignore[method-assign, assignment]
    EBSResponse.put_snapshot_block = checked(EBSResponse.put_snapshot_block)  # type: ignore[method-assign, assignment]
    EBSResponse.list_snapshot_blocks = checked(EBSResponse.list_snapshot_blocks)  # type: ignore[method-assign, assignment]
    EBSResponse.get_snapshot_block = checked(EBSResponse.get_snapshot_block)  # type: ignore[method-assign, assignment]
    main(["--host", "127.0.0.1", "--port", str(port)])


def _error(status: int, kind: str, reason: str) -> Answer:
    return status, {"status": status, "x-amzn-ErrorType": kind}, json.dumps({"Message": reason, "Reason": reason})


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
