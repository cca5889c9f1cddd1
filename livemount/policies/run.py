"""What a policy does when its time has come: a copy, and forgetting what its rules do not keep; each noted as a job."""

from __future__ import annotations

from pathlib import Path

from livemount.catalog.api import Warn, recorded
from livemount.catalog.catalog import JobKind
from livemount.core.settings import Settings
from livemount.media.disks import DiskInput
from livemount.media.repository import Made, Progress, Repository, Wanted
from livemount.policies.policy import Policy


def back_up(settings: Settings, policy: Policy, warn: Warn, progress: Progress | None = None) -> Made:
    """Make a copy of the policy's machine. Raises what `Repository.make` and `Repository.make_files` raise."""
    with recorded(settings, JobKind.BACKUP, warn, machine=policy.machine, policy=policy.name) as job:
        repository = Repository.open(settings.repository_path, settings.repository_password)
        machine = policy.description.machine()
        if policy.files is not None:
            made = repository.make_files(Path(policy.files), policy.machine, machine, progress, policy.tags)
        else:
            wanted = Wanted(
                boot=policy.boot,
                since=policy.since,
                read_all=policy.read_all,
                verify=policy.verify,
                detect_firmware=policy.description.firmware is None,
                tags=policy.tags,
            )
            inputs = [_input(place, policy.password_file) for place in policy.disks]
            made = repository.make(inputs, policy.machine, machine, progress, wanted)
        job.reason, job.bytes, job.copy_id = f"{policy.machine}@{made.copy.id[:8]}", made.added, made.copy.id
    return made


def forget(settings: Settings, policy: Policy, warn: Warn) -> int:
    """Forget the copies of the policy's machine that its rules do not keep; returns how many."""
    if policy.keep is None:
        return 0
    with recorded(settings, JobKind.FORGET, warn, machine=policy.machine, policy=policy.name) as job:
        repository = Repository.open(settings.repository_path, settings.repository_password)
        decisions = repository.forget(policy.keep, policy.machine)
        gone = sum(not each.kept for each in decisions)
        job.reason = f"{gone} of {len(decisions)} copies forgotten"
    return gone


def _input(place: str, password_file: Path | None) -> DiskInput:
    return DiskInput(place, password_file) if "://" in place else DiskInput(Path(place))
