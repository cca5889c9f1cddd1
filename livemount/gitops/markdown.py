"""Plans and drifts as Markdown, to be posted as a comment of a merge request.

What comes from files and guests is shown as it is, and never as markup, mention or HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from livemount.gitops.drift import Drift
from livemount.gitops.plan import Action, Step

SIGNS = {Action.MOUNT: "+", Action.REPLACE: "±", Action.CHANGE: "~", Action.END: "-", Action.NOTHING: " "}
LONGEST = 60_000
"""Characters: GitHub takes 65,536 in a comment."""


def counts(steps: Iterable[Step]) -> str:
    """How much is to be done, in a line."""
    actions = [step.action for step in steps]
    found = [f"{actions.count(action)} to {action}" for action in Action if action in actions and action in SIGNS]
    return ", ".join(text for text in found if not text.endswith(Action.NOTHING)) or "nothing to do"


def plan_markdown(set_name: str, steps: Sequence[Step]) -> str:
    """A plan. Its first line is a comment by which an earlier one can be found and replaced."""
    lines = [f"<!-- livemount-plan:{_comment(set_name)} -->", f"### Live mounts: {counts(steps)}", ""]
    if any(step.action is not Action.NOTHING for step in steps):
        lines += ["| | mount | why | ends |", "|---|---|---|---|"]
    for step in steps:
        if step.action is not Action.NOTHING:
            ends = step.expires.isoformat(timespec="minutes") if step.expires else ""
            lines.append(f"| {SIGNS[step.action]} {step.action} | {code(step.mount)} | {_cell(step.reason)} | {ends} |")
    for step in steps:
        if step.changes and step.action is not Action.NOTHING:
            lines += ["", f"**{code(step.mount)}**", ""]
            lines += [
                f"- {code(change.field)}: {_value(change.before)} → {_value(change.after)}" for change in step.changes
            ]
    quiet = [code(step.mount) for step in steps if step.action is Action.NOTHING]
    if quiet:
        lines += ["", f"As they are: {', '.join(quiet)}"]
    return _cut(lines)


def drift_markdown(drifts: Sequence[Drift]) -> str:
    """What differs from what was applied."""
    lines = ["<!-- livemount-drift -->", f"### Live mounts: {len(drifts)} differences from what was applied", ""]
    if not drifts:
        return _cut(["<!-- livemount-drift -->", "### Live mounts: as they were applied", ""])
    lines += ["| mount | difference | applied | found | `livemount apply` repairs it |", "|---|---|---|---|---|"]
    for each in drifts:
        repaired = "yes" if each.repaired_by_apply else "no"
        words = (each.problem, each.applied, each.found)
        lines.append(f"| {code(each.mount)} | {' | '.join(map(_cell, words))} | {repaired} |")
    return _cut(lines)


def code(text: str) -> str:
    """A text as code within a line, whatever is in it."""
    flat = _flat(text).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", flat)), default=0)
    fence = "`" * (longest + 1)
    padding = " " if longest else ""
    return f"{fence}{padding}{flat}{padding}{fence}"


def _cell(text: str) -> str:
    # A mention or an issue's number must not ring or link.
    return re.sub(r"([\\\\`*_{}\[\]()#+!|<>~&@:])", lambda found: f"&#{ord(found[0])};", _flat(text))


def _value(value: object) -> str:
    return "*not given*" if value is None else code(str(value))


def _flat(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())[:500]


def _comment(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._]+", "-", text)  # no "--", which would end the comment


def _cut(lines: list[str]) -> str:
    text = "\n".join(lines) + "\n"
    if len(text) <= LONGEST:
        return text
    kept = text[:LONGEST].rpartition("\n")[0]
    return f"{kept}\n\n*The rest is left out: it is too long for a comment.*\n"
