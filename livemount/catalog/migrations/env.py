"""Run by Alembic: migrates within the connection and the transaction of `livemount.catalog.database`."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
