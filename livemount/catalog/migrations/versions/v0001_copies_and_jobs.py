"""Repositories, their copies, jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the first tables."""
    op.create_table(
        "repositories",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("identity", sa.Text, nullable=False),
        sa.Column("state", sa.Text),
        sa.Column("refreshed", sa.DateTime(timezone=True)),
        sa.UniqueConstraint("location", "identity", name="repositories_place"),
    )
    op.create_table(
        "copies",
        sa.Column("repository", sa.Integer, sa.ForeignKey("repositories.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("place", sa.Integer, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("stored", sa.BigInteger, nullable=False),
        sa.Column("copy", sa.Text, nullable=False),
    )
    op.create_index("copies_machine", "copies", ["repository", "machine", "place"])
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("location", sa.Text, nullable=False),
        sa.Column("machine", sa.Text),
        sa.Column("policy", sa.Text),
        sa.Column("due", sa.DateTime(timezone=True)),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.Text),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("copy", sa.Text),
        sa.Column("bytes", sa.BigInteger),
    )
    op.create_index("jobs_started", "jobs", ["started"])
    op.create_index("jobs_machine", "jobs", ["machine", "kind", "started"])
