"""Which process does a job, and when it was heard of last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the columns, and find the backup that made a copy."""
    op.add_column("jobs", sa.Column("host", sa.Text))
    op.add_column("jobs", sa.Column("process", sa.Text))
    op.add_column("jobs", sa.Column("seen", sa.DateTime(timezone=True)))
    op.create_index("jobs_copy", "jobs", ["copy"])
