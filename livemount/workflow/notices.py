"""Notices of mounts, sent to a webhook by HTTPS.

They are signed as standardwebhooks.com describes, so that its libraries can verify them.
`HOME/webhook.yaml` names it and is read anew for every notice, so that a change needs no restart.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Protocol
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, ConfigDict, Field

from livemount.core.duration import Duration
from livemount.core.errors import DeniedError, LivemountError, UnavailableError
from livemount.core.machine import Frozen
from livemount.core.secrets import read_secret
from livemount.core.yaml_file import read_model
from livemount.workflow.states import MountState

NOTICE_VERSION = 1
"""Raised when a field of a notice goes or changes its meaning."""
TIMEOUT = 10.0
"""Seconds that a webhook has to answer."""
HINT = "docs/mounts.md shows an example of webhook.yaml"


class NoticeKind(StrEnum):
    """What a notice is about."""

    EXPIRING = "expiring"
    ENDED = "ended"
    FAILED = "failed"
    TEST = "test"


class Notice(Frozen):
    """What a webhook is told."""

    version: int = NOTICE_VERSION
    id: str
    """The same when a notice is sent again: who has seen it drops it."""
    kind: NoticeKind
    mount: str
    copy_: str = Field(alias="copy")
    owner: str
    state: MountState
    reason: str
    expires: datetime
    time: datetime


def _https(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or parts.username or parts.password or parts.fragment:
        raise ValueError("must be https://HOST/PATH, without a user or password in it")
    return text


class WebhookConfig(Frozen):
    """Where notices go."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=lambda name: name.replace("_", "-"))

    url: Annotated[str, AfterValidator(_https)]
    secret_file: Path
    """Mode 0600: base64 of at least 24 bytes, `whsec_` before it or not."""
    warn_before: Duration = Duration("15m")
    """How long before its expiry a mount is warned of; one whose whole lease is shorter is not."""
    only: tuple[NoticeKind, ...] = (NoticeKind.EXPIRING, NoticeKind.FAILED, NoticeKind.ENDED, NoticeKind.TEST)


class Notices(Protocol):
    """What the workflow needs of them."""

    def warn_before(self) -> float | None:
        """Seconds before an expiry, or `None`: nobody wants a warning. Raises nothing."""

    def send(self, notice: Notice) -> bool:
        """Send a notice; whether it was sent, or nobody wants it. Raises when it could not be."""


def signature(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature` of a notice."""
    digest = hmac.new(key, b".".join((id.encode(), str(timestamp).encode(), body)), hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def read_key(file: Path) -> bytes:
    """The key in a secret's file. Raises `DeniedError`."""
    try:
        key = base64.b64decode(read_secret(file).removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise DeniedError(f"the secret file {file} is not base64", hint=HINT) from error
    if len(key) < 24:
        raise DeniedError(f"the secret in {file} is shorter than 24 bytes", hint=HINT)
    return key


class Webhook:
    """`Notices` by the webhook that a file names, if there is one."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock

    def config(self) -> WebhookConfig | None:
        """What the file says; `None` without it. Raises `UsageError`, `DeniedError`."""
        return read_model(self._file, WebhookConfig, HINT) if self._file.exists() else None

    def warn_before(self) -> float | None:
        """As in `Notices`. What is wrong with the file is told when a notice is sent."""
        try:
            config = self.config()
        except LivemountError:
            return None
        wanted = config is not None and NoticeKind.EXPIRING in config.only
        return config.warn_before.seconds if config is not None and wanted else None

    def send(self, notice: Notice) -> bool:
        """As in `Notices`. Raises `UnavailableError`, `DeniedError`, `UsageError`."""
        config = self.config()
        if config is None or notice.kind not in config.only:
            return False
        key = read_key(config.secret_file)
        body = notice.model_dump_json(by_alias=True).encode()
        now = int(self._clock())
        headers = {
            "content-type": "application/json",
            "webhook-id": notice.id,
            "webhook-timestamp": str(now),
            "webhook-signature": signature(key, notice.id, now, body),
        }
        try:
            answer = httpx.post(config.url, content=body, headers=headers, timeout=TIMEOUT, follow_redirects=False)
        except httpx.HTTPError as error:
            raise UnavailableError(f"the webhook does not answer: {error}") from error
        if not answer.is_success:
            raise UnavailableError(f"the webhook answers {answer.status_code}")
        return True
