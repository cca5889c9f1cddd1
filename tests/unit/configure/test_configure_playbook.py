"""What a run of ansible-playbook comes to: the changes it made, or one message that names the failed task."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from livemount.configure.playbook import _reason, play
from livemount.core.errors import LivemountError

INVENTORY = {"all": {"hosts": {"here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}}}


def project(folder: Path, tasks: str) -> Path:
    (folder / "ansible.cfg").write_text("")
    (folder / "play.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{tasks}")
    return folder


def test_changes_are_counted_and_what_was_said_is_kept(tmp_path: Path) -> None:
    task = f"    - ansible.builtin.copy: {{content: x, dest: {tmp_path}/made, mode: '0600'}}\n"
    folder = project(tmp_path, task)
    assert play(folder, "play.yml", INVENTORY, tmp_path / "log") == 1
    assert (tmp_path / "made").read_text() == "x"
    assert play(folder, "play.yml", INVENTORY, tmp_path / "log") == 0
    assert "changed=0" in (tmp_path / "log").read_text()


def test_the_task_that_ended_the_run_is_named_not_one_that_was_rescued_or_ignored(tmp_path: Path) -> None:
    folder = project(
        tmp_path,
        """
    - {name: Ignored, ansible.builtin.fail: {msg: no matter}, ignore_errors: true}
    - block:
        - {name: Rescued, ansible.builtin.fail: {msg: made good}}
      rescue:
        - {name: Fatal, ansible.builtin.fail: {msg: the disk is gone}}
""",
    )
    with pytest.raises(LivemountError, match=r"^play.yml: Fatal failed on here: the disk is gone$"):
        play(folder, "play.yml", INVENTORY, tmp_path / "none" / "log")


def test_a_playbook_that_cannot_be_read_is_an_error_with_ansibles_words(tmp_path: Path) -> None:
    folder = project(tmp_path, "    - {no_such_module_at_all: {}}\n")
    with pytest.raises(LivemountError, match="no_such_module_at_all"):
        play(folder, "play.yml", INVENTORY, tmp_path / "log")


def test_the_reason_of_a_failed_loop_is_that_of_its_items() -> None:
    items = [{"failed": True, "msg": "no room on a"}, {"failed": False, "msg": "fine"}]
    assert _reason({"msg": "One or more items failed", "results": items}) == "One or more items failed; no room on a"
    assert _reason({}) == "it gave no reason"
