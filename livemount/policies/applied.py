"""The policies that are in force, kept in the catalog: which manager runs them, since when, or not now."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from livemount.catalog import tables
from livemount.catalog.api import open_database
from livemount.catalog.database import Database
from livemount.core.errors import NotFoundError, UnsupportedError
from livemount.core.machine import Frozen
from livemount.core.settings import Settings
from livemount.policies.policy import Policy


class Applied(Frozen):
    """A policy that is in force."""

    policy: Policy
    runner: str
    """The environment whose manager runs it: `HOST:FOLDER`."""
    suspended: bool
    since: datetime
    """What was due before is not run: when its times, or whether it is suspended, changed last."""


class Change(Frozen):
    """What applying a policy did to one of its fields, or would do; `None` is a field that is not given."""

    field: str
    before: Any
    after: Any


class Policies:
    """The policies in a catalog. May be used from any thread."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def all(self, tell: Callable[[str], object], runner: str | None = None) -> list[Applied]:
        """The policies (that this manager runs), by name; `tell` is told of those that this software refuses."""
        wanted = sa.select(tables.policies).order_by(tables.policies.c.name)
        if runner is not None:
            wanted = wanted.where(tables.policies.c.runner == runner)
        with self._database.reading() as connection:
            rows = connection.execute(wanted).mappings().all()
        found = []
        for row in rows:
            try:
                found.append(_applied(row))
            except UnsupportedError as error:
                tell(str(error))
        return found

    def get(self, name: str) -> Applied:
        """One policy. Raises `NotFoundError`, `UnsupportedError` for one that this software refuses."""
        return _applied(self._row(name))

    def _row(self, name: str) -> sa.RowMapping:
        with self._database.reading() as connection:
            row = _find(connection, name)
            names = ", ".join(connection.execute(sa.select(tables.policies.c.name)).scalars()) or "none"
        if row is None:
            raise NotFoundError(f"there is no policy {name!r}", hint=f"policies: {names}")
        return row

    def apply(self, policy: Policy, runner: str, *, plan_only: bool = False) -> list[Change]:
        """Bring a policy into force, run by this manager; returns what changes: nothing when it is as it was."""
        with self._database.writing() as connection:
            row = _find(connection, policy.name)
            before = _understood(row)
            changes = _changes(before, policy, runner)
            if not changes or plan_only:
                return changes
            values: dict[str, object] = {"policy": policy.dump(), "runner": runner}
            if row is None:
                values |= {"name": policy.name, "suspended": False, "since": datetime.now(UTC)}
                connection.execute(sa.insert(tables.policies).values(values))
                return changes
            if before is None or _times(before.policy) != _times(policy):
                values["since"] = datetime.now(UTC)
            connection.execute(sa.update(tables.policies).where(tables.policies.c.name == policy.name).values(values))
        return changes

    def suspend(self, name: str, *, suspended: bool) -> None:
        """Stop running it, or run it again from now on. Raises `NotFoundError`."""
        if self._row(name)["suspended"] != suspended:
            with self._database.writing() as connection:
                values = {"suspended": suspended, "since": datetime.now(UTC)}
                connection.execute(sa.update(tables.policies).where(tables.policies.c.name == name).values(values))

    def remove(self, name: str) -> None:
        """Put it out of force; copies and jobs stay. Raises `NotFoundError`."""
        self._row(name)
        with self._database.writing() as connection:
            connection.execute(sa.delete(tables.policies).where(tables.policies.c.name == name))


@contextmanager
def open_policies(settings: Settings) -> Iterator[Policies]:
    """The policies in the catalog that the settings name. Raises what `Database` raises."""
    with closing(Policies(open_database(settings))) as policies:
        yield policies


def runner_of(settings: Settings) -> str:
    """The manager of the environment that the settings name."""
    return f"{socket.gethostname()}:{settings.paths().root.absolute()}"


def _find(connection: sa.Connection, name: str) -> sa.RowMapping | None:
    return connection.execute(sa.select(tables.policies).where(tables.policies.c.name == name)).mappings().one_or_none()


def _understood(row: sa.RowMapping | None) -> Applied | None:
    try:
        return None if row is None else _applied(row)
    except UnsupportedError:
        return None


def _applied(row: sa.RowMapping) -> Applied:
    try:
        policy = Policy.model_validate_json(row["policy"])
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UnsupportedError(
            f"the policy {row['name']} cannot be run, the catalog's text of it is refused: {where}: {first['msg']}",
            hint="`livemount policy apply` its file again, or `livemount policy remove` it",
        ) from error
    return Applied(policy=policy, runner=row["runner"], suspended=row["suspended"], since=row["since"])


def _times(policy: Policy) -> tuple[object, str]:
    return policy.times(), policy.time_zone


def _changes(before: Applied | None, policy: Policy, runner: str) -> list[Change]:
    old = {} if before is None else {**_fields(before.policy), "run by": before.runner}
    new = {**_fields(policy), "run by": runner}
    fields = [*new, *(field for field in old if field not in new)]
    return [
        Change(field=field, before=old.get(field), after=new.get(field))
        for field in fields
        if old.get(field) != new.get(field)
    ]


def _fields(policy: Policy) -> dict[str, Any]:
    return policy.model_dump(mode="json", by_alias=True, exclude_defaults=True)
