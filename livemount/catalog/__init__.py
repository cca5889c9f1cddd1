"""The catalog: what is known of copies and jobs, in SQLite or PostgreSQL; its copies are a cache of repositories."""
