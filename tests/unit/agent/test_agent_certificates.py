"""The agents' authority: what it makes is good, kept to its owner, left alone while it is good, and renewed in time."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from livemount.core.errors import CorruptError, DeniedError, UsageError
from livemount.media import certificates
from livemount.media.certificates import Authority, expiry, fault


def test_certificates_are_made_once_and_renewed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "agents")
    server, client = authority.server("store1", ["10.0.0.5", "store1.example"]), authority.client("lm1")
    assert fault(server.folder, "server") is None
    assert fault(client.folder, "client") is None
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 8
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)
    assert (tmp_path / "agents").stat().st_mode & 0o077 == 0

    before = {path: path.read_bytes() for path in files}
    again = Authority(tmp_path / "agents")
    assert not again.server("store1", ["store1.example", "10.0.0.5"]).renewed
    assert not again.client("lm1").renewed
    assert before == {path: path.read_bytes() for path in files}
    assert again.server("store1", ["10.0.0.6"]).renewed

    monkeypatch.setattr(certificates, "RENEWED_AT", 1.1)
    assert again.client("lm1").renewed
    assert expiry(client.folder, "client") > client.expires - timedelta(seconds=1)


def test_faults_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path / "agents")
    folder = authority.client("lm1").folder
    assert "there is no" in str(fault(tmp_path, "client"))
    (folder / "client-key.pem").chmod(0o640)
    assert "can be read by others" in str(fault(folder, "client"))
    (folder / "client-key.pem").chmod(0o600)
    other = Authority(tmp_path / "other").client("lm1").folder
    shutil.copy(other / "client-key.pem", folder)
    assert "is not the key of" in str(fault(folder, "client"))
    shutil.copy(other / "client-cert.pem", folder)
    assert "is not by the authority" in str(fault(folder, "client"))
    (folder / "client-cert.pem").write_text("rubbish")
    assert "is no certificate" in str(fault(folder, "client"))
    assert authority.client("lm1").renewed
    monkeypatch.setattr(certificates, "LIFE", timedelta(seconds=-1))
    assert "expired on" in str(fault(authority.client("late").folder, "client"))
    monkeypatch.setattr(certificates, "SKEW", timedelta(days=-2))
    monkeypatch.setattr(certificates, "LIFE", timedelta(days=5))
    assert "not valid before" in str(fault(authority.client("early").folder, "client"))


def test_wrong_names_and_files_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    for name in ("", "../x", "a b", "x" * 65):
        with pytest.raises(UsageError):
            authority.client(name)
    for address in ("10.0.0.5:10809", "a b", "", "-" * 300):
        with pytest.raises(UsageError):
            authority.server("store1", [address])
    with pytest.raises(UsageError):
        authority.server("store1", [])
    (tmp_path / "ca/ca-key.pem").chmod(0o644)
    with pytest.raises(DeniedError):
        Authority(tmp_path)
    (tmp_path / "ca/ca-key.pem").chmod(0o600)
    (tmp_path / "ca/ca-key.pem").write_text("rubbish")
    with pytest.raises(CorruptError):
        Authority(tmp_path)
