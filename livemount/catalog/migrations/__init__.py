"""Alembic's migrations of the catalog: one file a version of the schema."""
