"""What the engine says, as our events and errors; which processes a killed caller's session has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pulumi.automation import events

from livemount.core.errors import ConflictError, LivemountError
from livemount.workflow.engine import _Reporter
from livemount.workflow.stack import ENGINE_GRACE, _began, _end_session, _members

URN = "urn:pulumi:web01::livemount-mount::livemount:infra:Mount$livemount:local:Interface::interface"


def diagnostic(message: str, severity: str = "error") -> events.EngineEvent:
    return events.EngineEvent.from_json(
        {
            "sequence": 1,
            "timestamp": 1,
            "diagnosticEvent": {
                "urn": URN,
                "message": message,
                "color": "never",
                "severity": severity,
                "streamID": 0,
                "ephemeral": False,
            },
        }
    )


def test_our_providers_error_wins(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = _Reporter()
    reporter(diagnostic("update failed"))
    reporter(diagnostic("[conflict] the address is taken\nHint: use another\n"))
    error = reporter.raised("")
    assert isinstance(error, ConflictError)
    assert (error.message, error.hint) == ("the address is taken", "use another")
    lines = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert lines[1]["kind"] == "error"
    assert (lines[1]["resource"], lines[1]["type"]) == ("interface", "livemount:local:Interface")


def test_else_what_the_engine_said(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = _Reporter()
    reporter(diagnostic("using pulumi-resource-livemount from $PATH at /x", "warning"))
    assert capsys.readouterr().out == ""
    assert reporter.raised("stderr of the CLI").message == "stderr of the CLI"
    reporter(diagnostic("could not load plugin"))
    reporter(diagnostic("update failed"))
    error = reporter.raised("stderr")
    assert type(error) is LivemountError
    assert error.message == "could not load plugin"


def test_a_session_left_behind_is_ended_and_no_other(tmp_path: Path) -> None:
    assert ENGINE_GRACE > 1
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert _members(child.pid) == [child.pid]
        assert os.getpid() not in _members(child.pid)
        file = tmp_path / "session"
        file.write_text(json.dumps({"session": child.pid, "began": "1"}))
        _end_session(file)
        assert child.poll() is None, "the number is another process's by now"
        file.write_text(json.dumps({"session": child.pid, "began": _began(child.pid)}))
        _end_session(file, grace=0.1)
        assert child.wait(5) == -9
        assert not file.exists()
    finally:
        child.kill()
        child.communicate()
