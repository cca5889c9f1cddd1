"""Files of mounts: what is wrong with them, what a plan says, and that a plan that was applied leaves nothing to do."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from livemount.cli.main import app
from livemount.core.errors import NotFoundError, UsageError
from livemount.core.machine import Copy, MachineDescription
from livemount.core.yaml_file import parse_model
from livemount.gitops.drift import drift, of_set
from livemount.gitops.folder import HINT, files_of, read_files, read_folder
from livemount.gitops.markdown import LONGEST, code, drift_markdown, plan_markdown
from livemount.gitops.plan import Action, Step, plan
from livemount.gitops.spec import MountSpec, schema_text
from livemount.workflow.notices import WebhookConfig, signature
from livemount.workflow.states import Declared, EndCause, MountOrder, MountRecord, MountState, Transition

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SMALL = "name: web01-drill\ncopy: web01\nttl: 2h\n"


def spec(text: str = SMALL) -> MountSpec:
    return parse_model(text.encode(), "a.yaml", MountSpec, HINT)


def a_record(wanted: MountSpec, state: MountState, cause: EndCause | None = None, **order: Any) -> MountRecord:
    """A mount that was made of a file an hour ago."""
    asked = NOW - timedelta(hours=1)
    copy = Copy(
        id="ab" * 32, name="web01", time=asked, size=2**30, stored=2**20,
        description=MachineDescription(), source="file:///x",
    )  # fmt: skip
    expires = wanted.expires(asked)
    fields = {
        "mount": wanted.name, "copy": copy, "expires": expires,
        "declared": Declared(set="mounts", spec=wanted.dump(), expires=expires),
    }  # fmt: skip
    history = [
        Transition(state=MountState.REQUESTED, time=asked, reason="asked for"),
        Transition(state=state, time=asked, reason="because"),
    ]
    return MountRecord(order=MountOrder.model_validate({**fields, **order}), history=history, ended_by=cause)


def one_step(wanted: MountSpec, record: MountRecord | None, *, prune: bool = False) -> Step:
    records = {} if record is None else {record.order.mount: record}
    (step,) = plan([wanted], records, "mounts", NOW, prune=prune)
    return step


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (SMALL + "fire: 1\n", "a.yaml, line 4: fire: there is no such field"),
        (SMALL.replace("2h", "soon"), "a.yaml, line 3: ttl: "),
        (SMALL.replace("2h", "5s"), "a.yaml, line 3: ttl: must be between 10s and 30d"),
        (SMALL.replace("2h", "90"), "a.yaml, line 3: ttl: input should be a valid string"),
        (SMALL.replace("ttl: 2h", "until: 2026-12-01 10:00"), "a.yaml, line 3: until: "),
        (SMALL + "until: 2026-12-01T10:00:00+01:00\n", "either ttl or until must be given"),
        (SMALL.replace("ttl: 2h\n", ""), "either ttl or until must be given"),
        (SMALL.replace("copy: web01\n", ""), "either copy or sources must be given"),
        (SMALL + "memory-mib: 1024\n", "go with sources"),
        (SMALL.replace("copy: web01", "copy: ../web01"), "a.yaml, line 2: copy: "),
        (SMALL.replace("copy: web01", "sources: [/x.raw]"), "a.yaml, line 2: sources.0: must be a URI"),
        (SMALL + "hold-io: 2h\n", "a.yaml, line 4: hold-io: must be between 0s and 1h"),
        (SMALL + "name: b\n", "a.yaml, line 4: name: is there twice"),
        (SMALL + "description: *x\n", "a.yaml, line 4: an alias"),
        (SMALL + "suspend: [\n", "is no YAML"),
        ("- a", "a.yaml, line 1: is no mapping"),
        ("", "a.yaml: is no mapping"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(UsageError) as raised:
        spec(text)
    assert told in raised.value.message


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for text in (data, SMALL.encode() + data):
        try:
            parse_model(text, "a.yaml", MountSpec, HINT)
        except UsageError as error:
            told = error.message
        else:
            continue
        assert told.startswith("a.yaml")


def test_all_that_is_wrong_in_a_folder_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(SMALL)
    (tmp_path / "b.yml").write_text(SMALL)
    (tmp_path / "c.yaml").write_text(SMALL + "fire: 1\n")
    (tmp_path / ".hidden.yaml").write_text("-")
    (tmp_path / "notes.txt").write_text("-")
    with pytest.raises(UsageError) as raised:
        read_folder(tmp_path, allow_empty=False)
    told = raised.value.message.splitlines()
    assert told == [
        f"{tmp_path}/c.yaml, line 4: fire: there is no such field",
        f"{tmp_path}/b.yml: name: {tmp_path}/a.yaml has the mount web01-drill as well",
    ]


def test_an_empty_folder_must_be_meant(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no files of mounts"):
        read_folder(tmp_path, allow_empty=False)
    assert read_folder(tmp_path, allow_empty=True) == []
    with pytest.raises(NotFoundError):
        read_folder(tmp_path / "nowhere", allow_empty=True)


def test_the_published_schema_is_that_of_the_model() -> None:
    assert (ROOT / "docs/mount.schema.json").read_text() == schema_text(), "livemount schema > docs/mount.schema.json"


def test_the_examples_are_good() -> None:
    assert len(read_files(files_of(ROOT / "examples/mounts"))) == 3
    for text in re.findall(r"```yaml\n(name:.*?)```", (ROOT / "docs/gitops.md").read_text(), re.DOTALL):
        spec(text)
    webhook = re.findall(r"```yaml\n(url:.*?)```", (ROOT / "docs/mounts.md").read_text(), re.DOTALL)
    assert parse_model(webhook[0].encode(), "docs/mounts.md", WebhookConfig, "").warn_before.seconds == 900
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert re.search(hook["files"], "mounts/web01.yaml")
    words = hook["entry"].split()[1:]
    result = CliRunner().invoke(app, [*words, *map(str, files_of(ROOT / "examples/mounts"))])
    assert (result.exit_code, result.output) == (0, "3 files are good\n")


def test_commands_in_the_examples_of_ci_exist() -> None:
    found = set()
    for file in (ROOT / "examples/ci").iterdir():
        yaml.safe_load(file.read_text())
        for words in re.findall(
            r"livemount (plan|apply|drift|validate)( [a-z].*?| --.*?)(?: >.*)?$", file.read_text(), re.M
        ):
            found.add(words[0])
            asked = CliRunner().invoke(app, [words[0], *words[1].split(), "--help"])
            assert asked.exit_code == 0, asked.output
    assert found == {"plan", "apply", "drift", "validate"}


def test_the_same_time_in_another_zone_is_no_change() -> None:
    berlin, utc = (
        SMALL.replace("ttl: 2h", f"until: {time}") for time in ("2026-01-01T14:00:00+01:00", "2026-01-01T13:00:00Z")
    )
    assert spec(berlin).dump() == spec(utc).dump()
    assert one_step(spec(utc), a_record(spec(berlin), MountState.RUNNING)).action is Action.NOTHING


@pytest.mark.parametrize(
    ("text", "state", "cause", "action", "ends"),
    [
        # (the file now; the mount made of SMALL an hour ago is in this state, for this cause; so; ends in hours)
        (SMALL, None, None, Action.MOUNT, 2),
        (SMALL + "suspend: true\n", None, None, Action.NOTHING, None),
        (SMALL, MountState.RUNNING, None, Action.NOTHING, 1),
        (SMALL, MountState.REQUESTED, None, Action.NOTHING, 1),
        (SMALL + "suspend: true\n", MountState.RUNNING, None, Action.END, None),
        (SMALL.replace("2h", "4h"), MountState.RUNNING, None, Action.CHANGE, 3),
        (SMALL.replace("2h", "30m"), MountState.RUNNING, None, Action.END, -0.5),
        (SMALL.replace("ttl: 2h", "until: 2026-01-01T17:00:00Z"), MountState.RUNNING, None, Action.CHANGE, 5),
        (SMALL + "description: x\n", MountState.BOOTING, None, Action.CHANGE, 1),
        (SMALL.replace("web01\n", "web01@abcd\n"), MountState.RUNNING, None, Action.REPLACE, 2),
        (SMALL, MountState.ENDED, EndCause.EXPIRED, Action.NOTHING, None),
        (SMALL, MountState.ENDED, None, Action.NOTHING, None),
        (SMALL + "description: x\n", MountState.ENDED, EndCause.EXPIRED, Action.MOUNT, 2),
        (SMALL, MountState.ENDED, EndCause.ASKED, Action.MOUNT, 1),
        (SMALL, MountState.ENDING, EndCause.ASKED, Action.MOUNT, 1),
        (SMALL, MountState.FAILED, EndCause.FAILED, Action.MOUNT, 1),
        (SMALL, MountState.ENDED, EndCause.SUSPENDED, Action.MOUNT, 2),
        (SMALL, MountState.ENDED, EndCause.REMOVED, Action.MOUNT, 2),
        (SMALL + "suspend: true\n", MountState.ENDED, EndCause.SUSPENDED, Action.NOTHING, None),
    ],
)
def test_what_a_file_asks_for(
    text: str, state: MountState | None, cause: EndCause | None, action: Action, ends: float | None
) -> None:
    step = one_step(spec(text), None if state is None else a_record(spec(), state, cause))
    assert step.action is action, step
    assert step.expires == (None if ends is None else NOW + timedelta(hours=ends))


def test_what_failed_or_was_ended_by_hand_does_not_come_back_after_its_time() -> None:
    short = spec(SMALL.replace("2h", "30m"))
    for cause in (EndCause.FAILED, EndCause.ASKED):
        assert one_step(short, a_record(short, MountState.ENDED, cause)).action is Action.NOTHING


def test_what_is_left_of_a_failed_mount_is_taken_away_first() -> None:
    left = a_record(spec(), MountState.FAILED, EndCause.FAILED).model_copy(update={"left": True})
    assert one_step(spec(), left).action is Action.REPLACE
    short = spec(SMALL.replace("2h", "30m"))
    left = a_record(short, MountState.FAILED, EndCause.EXPIRED).model_copy(update={"left": True})
    assert one_step(short, left).action is Action.END


def test_an_expiry_changed_by_hand_stays_until_the_file_says_another() -> None:
    extended = a_record(spec(), MountState.RUNNING, expires=NOW + timedelta(hours=9))
    step = one_step(spec(), extended)
    assert (step.action, step.expires) == (Action.NOTHING, NOW + timedelta(hours=9))
    assert "by hand" in step.reason
    described = one_step(spec(SMALL + "description: x\n"), extended)
    assert described.expires == NOW + timedelta(hours=9)
    assert described.declared is not None
    assert described.declared.expires == NOW + timedelta(hours=1)
    assert one_step(spec(SMALL.replace("2h", "3h")), extended).expires == NOW + timedelta(hours=2)


def test_names_of_others_are_conflicts_while_theirs_run() -> None:
    for other in ({"declared": None}, {"declared": Declared(set="theirs", spec={}, expires=NOW)}):
        assert one_step(spec(), a_record(spec(), MountState.RUNNING, **other)).action is Action.CONFLICT
        assert one_step(spec(), a_record(spec(), MountState.ENDED, **other)).action is Action.MOUNT


def test_only_a_prune_ends_what_no_file_names_and_only_of_the_set() -> None:
    records = {
        "gone": a_record(spec(SMALL.replace("web01-drill", "gone")), MountState.RUNNING),
        "over": a_record(spec(SMALL.replace("web01-drill", "over")), MountState.ENDED, EndCause.EXPIRED),
        "hand": a_record(spec(SMALL.replace("web01-drill", "hand")), MountState.RUNNING, declared=None),
    }
    (kept,) = plan([], records, "mounts", NOW, prune=False)
    assert (kept.mount, kept.action) == ("gone", Action.NOTHING)
    (ended,) = plan([], records, "mounts", NOW, prune=True)
    assert (ended.mount, ended.action, ended.cause) == ("gone", Action.END, EndCause.REMOVED)
    assert plan([], records, "theirs", NOW, prune=True) == []


SPECS = st.builds(
    lambda copy, ttl, note, suspend: spec(
        f"name: m\ncopy: {copy}\nttl: {ttl}\ndescription: '{note}'\nsuspend: {str(suspend).lower()}\n"
    ),
    st.sampled_from(["web01", "web02@latest"]),
    st.sampled_from(["30m", "90m", "2h"]),
    st.sampled_from(["", "x"]),
    st.booleans(),
)


@given(
    SPECS, st.none() | st.builds(a_record, SPECS, st.sampled_from(MountState), st.none() | st.sampled_from(EndCause))
)
def test_what_was_applied_leaves_nothing_to_do(wanted: MountSpec, record: MountRecord | None) -> None:
    step = one_step(wanted, record)
    if step.action is Action.NOTHING:
        return
    if step.action is Action.END:
        assert record is not None
        after = record.model_copy(update={"ended_by": step.cause, "history": [
            *record.history, Transition(state=MountState.ENDED, time=NOW, reason="x")]})  # fmt: skip
    else:
        assert step.declared is not None
        after = a_record(wanted, MountState.RUNNING, expires=step.expires, declared=step.declared)
    again = one_step(wanted, after)
    # Ended because its time is over by what the file says now, it is over for good, or made anew with a new lease.
    allowed = {Action.NOTHING, Action.MOUNT} if step.cause is EndCause.EXPIRED else {Action.NOTHING}
    assert again.action in allowed, (step, again)


def test_drift_is_what_is_not_as_it_was_applied() -> None:
    def found(state: MountState, cause: EndCause | None = None, **order: Any) -> list[tuple[str, bool]]:
        record = a_record(spec(), state, cause, **order)
        return [(each.problem, each.repaired_by_apply) for each in drift([record], {}, NOW)]

    assert found(MountState.PREPARING) == []
    assert found(MountState.RUNNING) == [("its pseudo-disk is gone", False)]
    assert found(MountState.RUNNING, declared=None) == []
    assert found(MountState.PREPARING, expires=NOW) == [("its expiry was changed by hand", False)]
    assert found(MountState.ENDED, EndCause.ASKED) == [("it was ended by hand", True)]
    assert found(MountState.FAILED, EndCause.FAILED) == [("it failed", True)]
    for cause in (EndCause.EXPIRED, EndCause.SUSPENDED, EndCause.REMOVED, EndCause.REPLACED):
        assert found(MountState.ENDED, cause) == []
    assert of_set([a_record(spec(), MountState.RUNNING)], "theirs") == []
    assert of_set([a_record(spec(), MountState.RUNNING, declared=None)], None) == []
    assert drift([a_record(spec(), MountState.RUNNING)], None, NOW) == []


def test_a_comment_shows_what_is_in_files_and_nothing_of_it_is_markup() -> None:
    evil = "@everyone | <script> ``x`` #1\n![a](b)"
    steps = [
        one_step(spec(), None).model_copy(update={"reason": evil}),
        one_step(spec(SMALL + "description: 'a | `b`'\n"), a_record(spec(), MountState.RUNNING)),
    ]
    text = plan_markdown("a --> b", steps)
    assert text.startswith("<!-- livemount-plan:a-b -->\n")
    assert "### Live mounts: 1 to mount, 1 to change" in text
    assert "| + mount | `web01-drill` |" in text
    assert "- `description`: *not given* → `` a \\| `b` ``" in text
    for piece in ("@everyone", "<script>", "![a]", "\n!"):
        assert piece not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 5 for row in rows), rows
    assert len(plan_markdown("m", steps * 1000)) < LONGEST + 200
    assert drift_markdown([]).splitlines()[1] == "### Live mounts: as they were applied"


@given(st.text(alphabet="`|a\n ", max_size=12))
def test_code_stays_within_its_fence(text: str) -> None:
    shown = code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    assert shown.endswith(fence[0])
    assert "\n" not in shown
    inner = shown[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inner) or not inner.strip()


def test_a_signature_is_that_of_the_standard() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    expected = hmac.new(key, b"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330." + body, hashlib.sha256).digest()
    assert (
        signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == "v1," + base64.b64encode(expected).decode()
    )
    assert (
        signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
