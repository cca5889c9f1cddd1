"""The copies of a repository that only a media agent can read: listed by the agent, read from it."""

from __future__ import annotations

import logging

from pydantic import TypeAdapter, ValidationError

from livemount.core.errors import CorruptError
from livemount.core.machine import Copy
from livemount.media.agents import AgentUri, read_document, with_sources
from livemount.media.repository import choose

log = logging.getLogger(__name__)

_COPIES = TypeAdapter(list[Copy])


class AgentCopies:
    """The copies of the repository that the URI's export names."""

    def __init__(self, uri: AgentUri) -> None:
        self._uri = uri

    def copies(self, name: str | None = None) -> list[Copy]:
        """The copies (of one machine), newest last. What is damaged is logged.

        Raises `UnavailableError`, `NotFoundError`, `DeniedError`, `CorruptError`.
        """
        said = read_document(self._uri.of(f".copies/{self._uri.export}"))
        try:
            found = _COPIES.validate_python([with_sources(copy, self._read_by_agent) for copy in said["copies"]])
            damaged = [str(reason) for reason in said["damaged"]]
        except (ValidationError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{self._uri} does not list copies", hint="is the agent of this version?") from error
        for reason in damaged:
            log.warning("%s", reason)
        return [copy for copy in found if name is None or copy.name == name]

    def _read_by_agent(self, export: str) -> str:
        return str(self._uri.of(export))

    def find(self, reference: str) -> Copy:
        """As `Repository.find`."""
        return choose(self.copies(), reference, str(self._uri))
