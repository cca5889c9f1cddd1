"""`agent://HOST[:PORT][,HOST[:PORT]...]/EXPORT?certificates=FOLDER`: a disk that media agents on other machines serve.

TLS with certificates of both sides: `ca-cert.pem`, `client-cert.pem`, `client-key.pem` in the folder, as
`livemount agent certificates` makes them. Several agents stand in for one another.
"""

from __future__ import annotations

from pathlib import Path

from livemount.core.errors import UsageError
from livemount.media.agents import SCHEME, AgentDisk, AgentUri
from livemount.media.source import Source

SCHEMES = (SCHEME,)


def open(uri: str, password_file: Path | None) -> Source:
    """Connect to the first agent that serves it; passwords of repositories are the agents' alone."""
    if password_file is not None:
        raise UsageError(f"{uri} has no password", hint="the agent has its own; certificates=FOLDER lets us in")
    return AgentDisk(AgentUri.parse(uri))
