"""The catalog's tables as the newest migration leaves them, and the times in them."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.engine.interfaces import Dialect

HEAD = "0003"
"""The newest version of the schema in `migrations/versions`."""


class Utc(sa.TypeDecorator[datetime]):
    """A time with its zone; SQLite, which keeps none, gets UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """To UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """From UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = sa.MetaData()

repositories = sa.Table(
    "repositories",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("location", sa.Text, nullable=False),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("state", sa.Text),  # what the copies in the table are of; NULL: nothing that can be relied on
    sa.Column("refreshed", Utc),
    sa.UniqueConstraint("location", "identity", name="repositories_place"),
)

copies = sa.Table(
    "copies",
    metadata,
    sa.Column("repository", sa.Integer, sa.ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("place", sa.Integer, nullable=False),  # in the repository's own order
    sa.Column("machine", sa.Text, nullable=False),
    sa.Column("time", Utc, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("stored", sa.BigInteger, nullable=False),
    sa.Column("copy", sa.Text, nullable=False),  # the whole `Copy`, as JSON
    sa.Index("copies_machine", "repository", "machine", "place"),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("location", sa.Text, nullable=False),
    sa.Column("machine", sa.Text),
    sa.Column("policy", sa.Text),
    sa.Column("due", Utc),
    sa.Column("started", Utc, nullable=False),
    sa.Column("ended", Utc),
    sa.Column("outcome", sa.Text),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("copy", sa.Text),
    sa.Column("bytes", sa.BigInteger),
    sa.Column("host", sa.Text),
    sa.Column("process", sa.Text),  # see livemount.core.processes
    sa.Column("seen", Utc),  # by the database's clock: when the process last said that it lives
    sa.Index("jobs_started", "started"),
    sa.Index("jobs_machine", "machine", "kind", "started"),
    sa.Index("jobs_policy", "policy", "kind", "started"),
    sa.Index("jobs_copy", "copy"),
)

policies = sa.Table(
    "policies",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),  # the whole `Policy`, as JSON
    sa.Column("runner", sa.Text, nullable=False),  # whose manager runs it
    sa.Column("suspended", sa.Boolean, nullable=False),
    sa.Column("since", Utc, nullable=False),  # nothing that was due before is run
)
