"""A client of media agents: what one export of an agent is, and one export served by several of them.

An agent is an NBD server that says in an export's description (`NBD_INFO_DESCRIPTION`) what the content is, as JSON:
`{"livemount": 1, "identity": HEX, "chunk_size": BYTES}`, or why it cannot serve it: `{"livemount": 1, "error":
EXIT CODE, "message": TEXT}`. Names that begin with a dot are documents: `{"livemount": 1, "length": BYTES}`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from livemount.core.errors import CorruptError, LivemountError, UnavailableError, UsageError, error_of
from livemount.media.nbd_export import LARGEST_STATUS, NbdExport
from livemount.media.registry import SourceUri
from livemount.media.source import Extent
from livemount.media.sources.nbd import tcp, with_tls

SCHEME = "agent"
PORT = 10809
VERSION = 1
LARGEST_DOCUMENT = 256 << 20
FAILURE_IS_NEWS = 1.0
"""Seconds in which an agent that could not be reached is not asked again by another thread."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class AgentUri:
    """`agent://HOST[:PORT][,HOST[:PORT]...]/EXPORT?certificates=FOLDER`: one export, and the agents that serve it."""

    addresses: tuple[tuple[str, int], ...]
    export: str
    certificates: Path

    @classmethod
    def parse(cls, text: str, certificates: Path | None = None) -> AgentUri:
        """`certificates` is for a URI that names none. Raises `UsageError`."""
        shaped = re.fullmatch(r"agent://([^/?#]+)(/[^#]*)?", text)
        if shaped is None:
            raise UsageError(f"{text!r} names no media agent", hint="for example agent://10.0.0.5:10809/web01")
        tail = shaped[2] or "/"
        parsed = [SourceUri.parse(f"{SCHEME}://{place}{tail}", host=True) for place in shaped[1].split(",")]
        (given,) = parsed[0].require(optional=("certificates",))
        folder = Path(given) if given else certificates
        if folder is None or not folder.is_absolute():
            raise UsageError(f"{text!r} names no certificates", hint="add ?certificates=FOLDER, an absolute path")
        addresses = tuple((uri.host, uri.port or PORT) for uri in parsed)
        if len(set(addresses)) != len(addresses):
            raise UsageError(f"{text!r} names an agent twice")
        return cls(addresses, str(parsed[0].path)[1:], folder)

    def of(self, export: str) -> AgentUri:
        """Another export of the same agents."""
        return replace(self, export=export)

    def __str__(self) -> str:
        one = [str(SourceUri(SCHEME, Path("/"), {}, host, port)).removesuffix("/") for host, port in self.addresses]
        tail = str(SourceUri(SCHEME, Path("/", self.export), {"certificates": str(self.certificates)}))
        return ",".join([one[0], *(place.removeprefix(f"{SCHEME}://") for place in one[1:])]) + tail[len("agent://") :]


@dataclass(frozen=True)
class Facts:
    """What an agent says of an export."""

    identity: str = ""
    chunk_size: int = 0
    length: int = 0
    """Bytes of a document; the disk is padded."""


def read_facts(description: str, name: str) -> Facts:
    """What a description says. Raises the error it tells of, and `CorruptError` for what no agent of ours says."""
    try:
        said = json.loads(description)
        if said["livemount"] != VERSION:
            raise ValueError(f"version {said['livemount']}")
        if "error" in said:
            hint = said.get("hint")
            raise error_of(int(said["error"]), f"{name}: {said['message']}", None if hint is None else str(hint))
        if "length" in said:
            return _checked(Facts(length=int(said["length"])), 0 <= int(said["length"]) <= LARGEST_DOCUMENT)
        identity, chunk = str(said["identity"]), int(said["chunk_size"])
        fine = re.fullmatch(r"[0-9a-f]{32,128}", identity) is not None and 512 <= chunk <= 1 << 30
        return _checked(Facts(identity, chunk), fine)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(
            f"{name} does not say what it is", hint="is it a media agent, and of this version?"
        ) from error


def _checked(facts: Facts, fine: bool) -> Facts:
    if not fine:
        raise ValueError(f"impossible: {facts}")
    return facts


class Agent:
    """One export of one agent: connected when it is needed, and again after a failure."""

    def __init__(self, uri: AgentUri, address: tuple[str, int]) -> None:
        host, port = address
        self.name = f"{uri.export!r} of the media agent {host}:{port}"
        self._uri = uri
        self._start = with_tls(tcp(host, port), None, str(uri.certificates))
        self._lock = threading.Lock()
        self._export: NbdExport | None = None
        self._failed: tuple[float, LivemountError] | None = None
        self._closed = False
        self._expected: Facts | None = None
        self.facts = Facts()

    def expect(self, facts: Facts) -> None:
        """Serve this content or none."""
        self._expected = facts

    def export(self) -> NbdExport:
        """The connected export. Raises what connecting to it raises, and `CorruptError` for another content."""
        with self._lock:
            if self._closed:
                raise UnavailableError(f"the source {self.name} is closed")
            if self._export is None:
                if self._failed and time.monotonic() - self._failed[0] < FAILURE_IS_NEWS:
                    raise self._failed[1]
                try:
                    self._export = NbdExport(self.name, self._dial, inspect=self._inspect, fault=self._fault)
                except LivemountError as error:
                    self._failed = time.monotonic(), error
                    raise
            return self._export

    def _dial(self, handle: Any) -> None:
        handle.set_export_name(self._uri.export)
        handle.set_full_info(True)
        self._start(handle)

    def _inspect(self, handle: Any) -> None:
        facts = read_facts(str(handle.get_export_description()), self.name)
        if self._expected is not None and facts != self._expected:
            raise CorruptError(
                f"{self.name} has another content than was mounted", hint="all agents must serve the same"
            )
        self.facts = facts

    def _fault(self) -> str | None:
        # Imported late: only who cannot connect needs it.
        from livemount.media.certificates import fault

        return fault(self._uri.certificates, "client")

    def close(self) -> None:
        """Let go of the connections."""
        with self._lock:
            self._closed = True
            if self._export is not None:
                self._export.close()
                self._export = None


class AgentDisk:
    """A `Source` that any of several agents serves: the one that answered last is asked first."""

    def __init__(self, uri: AgentUri) -> None:
        self._agents = [Agent(uri, address) for address in uri.addresses]
        self._turn = 0
        try:
            self._size = self._ask(lambda export: export.size)
            self._facts = self._agents[self._turn].facts
            if not self._facts.identity:
                raise UsageError(f"{uri.export!r} is no disk")
        except LivemountError:
            self.close()
            raise
        for agent in self._agents:
            agent.expect(self._facts)

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self._size

    @property
    def identity(self) -> str:
        """That of the source at the agent: one that is opened here has the same."""
        return self._facts.identity

    @property
    def chunk_size(self) -> int:
        """That of the source at the agent."""
        return self._facts.chunk_size

    def extents(self, offset: int, length: int) -> Iterator[Extent]:
        """What the agent says is zero."""
        end = offset + length
        while True:
            step = min(end - offset, LARGEST_STATUS)
            yield from self._ask(lambda export, at=offset, step=step: list(export.extents(at, step)))  # type: ignore[misc]
            offset += step
            if offset >= end:
                return

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes."""
        return self._ask(lambda export: export.read(offset, length))

    def close(self) -> None:
        """Let go of all connections."""
        for agent in self._agents:
            agent.close()

    def _ask(self, question: Callable[[NbdExport], Answer]) -> Answer:
        """Ask one agent after the other; when none can answer, what may pass is raised rather than what stays."""
        first, count = self._turn, len(self._agents)
        errors: list[LivemountError] = []
        for turn in [(first + step) % count for step in range(count)]:
            agent = self._agents[turn]
            try:
                answer = question(agent.export())
            except UsageError:
                raise
            except LivemountError as error:
                errors.append(error)
            else:
                self._turn = turn
                return answer
        raise next((error for error in errors if isinstance(error, UnavailableError)), errors[0])


def with_sources(copy: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """A copy as JSON, with the names of its sources changed: of the copy, and of each of its disks."""
    disks = [disk | {"source": change(disk["source"])} for disk in copy.get("disks", ())]
    return copy | {"source": change(copy["source"])} | ({"disks": disks} if "disks" in copy else {})


def read_document(uri: AgentUri, *, address: tuple[str, int] | None = None) -> Any:
    """The JSON of a document that the first agent that answers has; only the one at `address` is asked if given."""
    errors: list[LivemountError] = []
    for place in uri.addresses if address is None else (address,):
        agent = Agent(uri, place)
        try:
            export = agent.export()
            if agent.facts.identity:
                raise UsageError(f"{agent.name} is a disk, no document")
            text = export.read(0, min(agent.facts.length, export.size))
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            errors.append(CorruptError(f"{agent.name} is no JSON: {error}"))
        except LivemountError as error:
            errors.append(error)
        finally:
            agent.close()
    raise errors[0]
