"""The client of the pseudo-disk supervisor on this host."""

from __future__ import annotations

from pathlib import Path

from livemount.driver import protocol
from livemount.driver.api import PseudoDiskSpec, PseudoDiskState, RecallStats


class DriverClient:
    """`PseudoDiskDriver` over the supervisor's socket. Calls wait as long as the supervisor works.

    Raises what the supervisor raised, and `UnavailableError` when it does not answer; every call may be repeated.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def attach(self, spec: PseudoDiskSpec) -> PseudoDiskState:
        """Bring the disk up (again)."""
        request = {"call": "attach", "spec": spec.model_dump(mode="json")}
        return PseudoDiskState.model_validate(protocol.call(self._socket, request))

    def detach(self, id: str) -> None:
        """Flush and take the disk down; its stores stay."""
        protocol.call(self._socket, {"call": "detach", "id": id})

    def destroy(self, id: str) -> None:
        """Take the disk down, whoever uses it, and delete its stores."""
        protocol.call(self._socket, {"call": "destroy", "id": id})

    def state(self, id: str) -> PseudoDiskState:
        """Raises `NotFoundError` when the id is not attached."""
        return PseudoDiskState.model_validate(protocol.call(self._socket, {"call": "state", "id": id}))

    def states(self) -> list[PseudoDiskState]:
        """All attached disks."""
        return [PseudoDiskState.model_validate(each) for each in protocol.call(self._socket, {"call": "states"})]

    def flush(self, id: str) -> None:
        """Make everything written so far durable."""
        protocol.call(self._socket, {"call": "flush", "id": id})

    def pin(self, source: str, holder: str, reason: str, password_file: Path | None) -> None:
        """Keep what a source names from being removed by retention."""
        request = {"call": "pin", "source": source, "holder": holder, "reason": reason}
        protocol.call(self._socket, request | {"password": password_file and str(password_file)})

    def unpin(self, source: str, holder: str, password_file: Path | None) -> None:
        """Undo it, now or when the repository is back."""
        request = {"call": "unpin", "source": source, "holder": holder}
        protocol.call(self._socket, request | {"password": password_file and str(password_file)})

    def recall_stats(self) -> RecallStats:
        """The recall stores of the host."""
        return RecallStats.model_validate(protocol.call(self._socket, {"call": "recall-stats"}))
