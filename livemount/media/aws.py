"""What sources in AWS have in common: credentials, clients of botocore, and what their errors mean to a reader."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from livemount.core.errors import (
    CorruptError,
    DeniedError,
    LivemountError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
    UsageError,
)
from livemount.core.secrets import read_secret

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

CONNECTIONS = 64
CONNECT_PATIENCE = 5.0
PATIENCE = 15.0
"""Seconds without a byte from a service that was asked."""
ATTEMPTS = 3
"""Of one request, with botocore's pauses between them; who reads tries again by itself."""
THROTTLED_PATIENCE = 60.0
"""Seconds for which a request is made anew that the service has no capacity for."""

KEYS = {
    "AWS_ACCESS_KEY_ID": "aws_access_key_id",
    "AWS_SECRET_ACCESS_KEY": "aws_secret_access_key",
    "AWS_SESSION_TOKEN": "aws_session_token",
}
THROTTLED = frozenset(
    (
        "ThrottlingException",
        "RequestThrottledException",
        "Throttling",
        "SlowDown",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "ThrottledException",
        "RequestThrottled",
    )
)
MISSING = frozenset(
    (
        "ResourceNotFoundException",
        "NoSuchKey",
        "NoSuchBucket",
        "NoSuchVersion",
        "404",
    )
)
SECRETS = frozenset(
    (
        "UnrecognizedClientException",
        "InvalidClientTokenId",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "AuthFailure",
        "InvalidToken",
        "InvalidSignatureException",
        "ExpiredToken",
        "ExpiredTokenException",
        "MissingAuthenticationToken",
        "IncompleteSignature",
    )
)

Result = TypeVar("Result")


def make_client(service: str, region: str, endpoint: str, profile: str, password_file: Path | None) -> Any:
    """A client of `service` with the keys of the password file, else those of the usual chain.

    `region`, `endpoint` and `profile` may be empty. Raises `UsageError` for an endpoint in the clear, `DeniedError` for
    a password file without keys or where the chain has none.
    """
    from botocore.config import Config
    from botocore.session import Session

    if endpoint and not _is_safe(endpoint):
        raise UsageError(f"the endpoint {endpoint!r} is not https", hint="http is for this machine only")
    if password_file is not None and profile:
        raise UsageError("keys are named twice", hint="either a password file or `profile=`")
    keys = read_keys(password_file) if password_file is not None else {}
    for name in ("botocore", "urllib3"):  # they log requests, with what is secret in their headers
        logging.getLogger(name).setLevel(logging.WARNING)
    with told(service):
        session = Session(profile=profile or None)
        if not keys and session.get_credentials() is None:
            raise DeniedError(
                "there are no AWS credentials",
                hint="by --password-file, `profile=`, the environment or an instance role",
            )
        config = Config(
            connect_timeout=CONNECT_PATIENCE,
            read_timeout=PATIENCE,
            retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
            max_pool_connections=CONNECTIONS,
            tcp_keepalive=True,
        )
        where = {"endpoint_url": endpoint} if endpoint else {}
        return session.create_client(service, region_name=region or _region(session), config=config, **where, **keys)


def _region(session: Any) -> str:
    """S3 sends a client on to the region where a bucket is."""
    return session.get_config_variable("region") or "us-east-1"


def _is_safe(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or parts.query or parts.fragment:
        return False
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host == "localhost"
    return parts.scheme == "https" or (parts.scheme == "http" and here)


def read_keys(file: Path) -> dict[str, str]:
    """Arguments of a client from lines `AWS_ACCESS_KEY_ID=...`. Raises `DeniedError` for a file of anything else."""
    keys: dict[str, str] = {}
    for line in filter(None, map(str.strip, read_secret(file).splitlines())):
        name, _, value = line.partition("=")
        if name not in KEYS or not value or not value.isprintable() or KEYS[name] in keys:
            break
        keys[KEYS[name]] = value
    else:
        if {"aws_access_key_id", "aws_secret_access_key"} <= set(keys):
            return keys
    raise DeniedError(
        f"{file} holds no AWS keys",
        hint="AWS_ACCESS_KEY_ID=..., AWS_SECRET_ACCESS_KEY=..., perhaps AWS_SESSION_TOKEN=...",
    )


@contextmanager
def told(what: str, refused: Callable[[ClientError], LivemountError | None] = lambda _: None) -> Iterator[None]:
    """Turn errors of botocore about `what` into ours; `refused` may know better."""
    import botocore.exceptions as aws
    from urllib3.exceptions import HTTPError

    try:
        yield
    except aws.ClientError as error:
        raise refused(error) or _meaning(what, error) from error
    except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError) as error:
        raise DeniedError(f"there are no AWS credentials: {error}") from error
    except (aws.ProfileNotFound, aws.TokenRetrievalError, aws.UnauthorizedSSOTokenError) as error:
        raise DeniedError(str(error)) from error
    except (aws.ParamValidationError, aws.InvalidRegionError, aws.InvalidEndpointDiscoveryConfigurationError) as error:
        raise UsageError(f"{what}: {error}") from error
    except (aws.ConnectionError, aws.HTTPClientError, aws.IncompleteReadError, HTTPError) as error:
        if "CERTIFICATE_VERIFY" in str(error):
            raise DeniedError(f"the server of {what} cannot be trusted: {error}") from error
        raise UnavailableError(f"{what} cannot be read: {str(error).partition('?')[0]}") from error
    except aws.BotoCoreError as error:
        raise UnsupportedError(f"{what}: {error}") from error


def code_of(error: ClientError) -> str:
    """The service's name of an error."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: ClientError) -> int:
    """The status of HTTP that an error came with."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _meaning(what: str, error: ClientError) -> LivemountError:
    code, status = code_of(error), status_of(error)
    text = f"{what}: AWS answers {status} {code}: {str(error.response.get('Error', {}).get('Message', ''))[:200]}"
    if code == "InvalidObjectState":
        return UnsupportedError(text, hint="it is archived; restore it first")
    if code == "PreconditionFailed" or status == 412:
        return CorruptError(f"{what} was changed while it was in use", hint="mount the new version by itself")
    if code in THROTTLED or status == 429 or status >= 500 or code == "RequestTimeout":
        return UnavailableError(text)
    if code in SECRETS or status in (401, 403):
        return DeniedError(text, hint="is the key right, and may it read this?")
    if code in MISSING or status in (404, 410):
        return NotFoundError(text)
    return UnsupportedError(text)


def patiently(what: str, call: Callable[..., Result], words: Mapping[str, Any]) -> Result:
    """What `call` gives; a service that is too busy is asked again until `THROTTLED_PATIENCE` is over.

    Between attempts botocore waits, longer each time, and limits the rate at which all threads ask. Raises botocore's.
    """
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + THROTTLED_PATIENCE
    while True:
        try:
            return call(**words)
        except ClientError as error:
            if code_of(error) not in THROTTLED and status_of(error) not in (429, 503):
                raise
            if time.monotonic() > deadline:
                raise UnavailableError(f"{what} is throttled for {THROTTLED_PATIENCE:.0f} s") from error
