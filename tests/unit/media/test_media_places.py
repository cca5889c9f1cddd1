"""Places of repositories: what names none, or has no keys, is refused before anything is asked of anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from livemount.core.errors import DeniedError, LivemountError, UnsupportedError, UsageError
from livemount.core.secrets import write_secret
from livemount.media.repository import Repository

S3 = "restic+s3://127.0.0.1:1/vault/site"
KEYS = "AWS_ACCESS_KEY_ID=id\nAWS_SECRET_ACCESS_KEY=hidden"


@pytest.mark.parametrize(
    ("place", "lines", "error"),
    [
        ("restic+s3://user:word@127.0.0.1/vault", KEYS, UsageError),
        ("restic+s3://127.0.0.1:1/vault/../other", KEYS, UsageError),
        ("restic+s3://127.0.0.1:1/vault//site", KEYS, UsageError),
        ("restic+s3://127.0.0.1:1", KEYS, UsageError),
        ("restic+s3:///vault", KEYS, UsageError),
        ("restic+gopher://127.0.0.1/vault", KEYS, UnsupportedError),
        (S3, "", DeniedError),
        (S3, "AWS_ACCESS_KEY_ID=id", DeniedError),
        (S3, "no line of ours", UsageError),
        (S3, f"{KEYS}\nAWS_ACCESS_KEY_ID=other", UsageError),
        (S3, f"{KEYS}\nPLAIN_HTTP=perhaps", UsageError),
        ("restic+azure://127.0.0.1:1/account/vault", "", DeniedError),
        ("restic+azure://127.0.0.1:1/account/vault", "AZURE_ACCOUNT_KEY=!", DeniedError),
        ("restic+azure://127.0.0.1:1/account", "AZURE_ACCOUNT_KEY=aGlkZGVu", UsageError),
        ("restic+rest://127.0.0.1:1/a/b/c", "", UsageError),
        ("restic+rest://127.0.0.1:1/a", "RESTIC_REST_USERNAME=me", DeniedError),
        ("restic+sftp://127.0.0.1:1", "", UsageError),
        ("restic+sftp://127.0.0.1:1/srv", 'SFTP_USER="x"', UsageError),
        ("restic+sftp://-oProxyCommand=id/srv", "", UsageError),
    ],
)
def test_what_cannot_be_opened_is_told(
    place: str, lines: str, error: type[LivemountError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AZURE_ACCOUNT_KEY", "AZURE_ACCOUNT_SAS"):
        monkeypatch.delenv(name, raising=False)
    password = tmp_path / "password"
    write_secret(password, f"correct horse\n{lines}")
    for way in (Repository.open, Repository.init):
        with pytest.raises(error) as caught:
            way(place, password)
        assert "hidden" not in f"{caught.value} {caught.value.hint}"
        assert "correct" not in f"{caught.value} {caught.value.hint}"
