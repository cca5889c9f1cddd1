"""What a host remembers of a mount, and what it asks the driver for."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from livemount.core.machine import Firmware
from livemount.host.api import PseudoDiskRequest
from livemount.host.records import Record, Records


def record(**changes: object) -> Record:
    request = {"source": "file:///a", "address": "10.77.0.10", "firmware": Firmware.BIOS, **changes}
    return Record(request=PseudoDiskRequest.model_validate(request), created=datetime(2026, 1, 1, tzinfo=UTC))


def test_the_driver_holds_io_as_long_as_the_request_says(tmp_path: Path) -> None:
    records = Records(tmp_path / "mounts", tmp_path / "recall")
    assert records.disk_specs("web01", record().request)[0].hold_seconds == 20
    assert records.disk_specs("web01", record(hold_seconds=0).request)[0].hold_seconds == 0


@pytest.mark.parametrize("seconds", [-0.1, 3601])
def test_a_request_cannot_hold_io_for_ever(seconds: float) -> None:
    with pytest.raises(ValidationError, match="hold_seconds"):
        record(hold_seconds=seconds)


def test_a_record_of_an_earlier_version_is_the_same_request(tmp_path: Path) -> None:
    records = Records(tmp_path / "mounts", tmp_path / "recall")
    records.write("web01", record())
    path = records.folder("web01") / "record.json"
    content = json.loads(path.read_text())
    del content["request"]["hold_seconds"]
    path.write_text(json.dumps(content))
    assert records.read("web01") == record()
