"""Runs one Ansible playbook through ansible-runner, and turns its failure into one message.

In a process of its own: ansible-runner forks, and the Pulumi provider has gRPC threads, which no fork survives.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import ansible_runner  # type: ignore[import-untyped]  # it has no types

from livemount.core.errors import LivemountError
from livemount.core.run import run

log = logging.getLogger(__name__)

Inventory = dict[str, dict[str, Any]]
"""Groups with their `hosts` and `vars`, as in a YAML inventory."""


def play(project: Path, playbook: str, inventory: Inventory, record: Path) -> int:
    """Run `project/playbook` on the hosts of `inventory`; return how many tasks changed something.

    What Ansible said is kept in `record` when its folder exists. Raises `LivemountError` naming the task that failed.
    """
    request = {"project": str(project), "playbook": playbook, "inventory": inventory, "record": str(record)}
    done = run(sys.executable, "-m", __name__, input=json.dumps(request), timeout=None)
    answer = json.loads(done.stdout.splitlines()[-1])
    if "error" in answer:
        raise LivemountError(answer["error"])
    return int(answer["changed"])


def main() -> None:
    """Do what `play` asks for on standard input, and answer on standard output."""
    request = json.load(sys.stdin)
    try:
        changed = _play(Path(request["project"]), request["playbook"], request["inventory"], Path(request["record"]))
        answer: dict[str, Any] = {"changed": changed}
    except LivemountError as error:
        answer = {"error": error.message}
    print(json.dumps(answer))


def _play(project: Path, playbook: str, inventory: Inventory, record: Path) -> int:
    failures: list[str] = []
    changed = 0

    def note(event: dict[str, Any]) -> bool:
        nonlocal changed
        data = event.get("event_data", {})
        if event["event"] in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            failures.append(f"{_task(data)} failed on {data.get('host')}: {_reason(data.get('res', {}))}")
        elif event["event"] == "playbook_on_task_start":
            log.debug("ansible: %s", _task(data))
        elif event["event"] == "playbook_on_stats":
            changed = sum(data["changed"].values())
        return False  # nothing reads the events from files

    # Its own folder for each run: nothing is left in ~/.ansible, and two runs cannot meet.
    with tempfile.TemporaryDirectory(prefix="livemount-ansible-") as folder:
        outcome = ansible_runner.run(
            private_data_dir=folder,
            project_dir=str(project),
            playbook=playbook,
            inventory=inventory,
            envvars={
                "ANSIBLE_CONFIG": str(project / "ansible.cfg"),
                "ANSIBLE_HOME": f"{folder}/home",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            settings={"suppress_ansible_output": True, "runner_mode": "subprocess"},
            event_handler=note,
            quiet=True,
        )
        said = Path(outcome.config.artifact_dir, "stdout")
        text = said.read_text(errors="replace") if said.exists() else ""
        if record.parent.is_dir() and text:
            shutil.copyfile(said, record)
    if outcome.status != "successful":
        # A task that was rescued failed too; the one that ended the run is the last.
        reason = failures[-1] if failures else text.strip()[-2000:] or f"ansible-playbook ended as {outcome.status}"
        raise LivemountError(f"{playbook}: {reason}")
    return changed


def _task(data: dict[str, Any]) -> str:
    role = data.get("role")
    return f"{role}: {data.get('task')}" if role else f"{data.get('task')}"


def _reason(result: dict[str, Any]) -> str:
    """The message of a failed task, and what its program said."""
    parts = [str(result.get(key, "")).strip() for key in ("msg", "stderr", "stdout")]
    items = [_reason(item) for item in result.get("results", []) if item.get("failed")]
    return "; ".join(dict.fromkeys(part for part in (*parts, *items) if part)) or "it gave no reason"


if __name__ == "__main__":
    main()
