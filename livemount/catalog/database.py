"""The catalog's database: SQLite or PostgreSQL, brought to the newest schema when it is opened.

A migration is one transaction that holds a lock, so that of several processes that open an older catalog at once one
migrates and the others find it done; killed, it leaves the old schema.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event, exc

from livemount.catalog.tables import HEAD, Utc
from livemount.core.errors import CorruptError, DeniedError, UnavailableError, UnsupportedError, UsageError
from livemount.core.secrets import read_secret

PATIENCE = 30
"""Seconds to wait for another writer, and for PostgreSQL's server."""
MIGRATION_LOCK = 0x6C6D_6361_7461
"""The number of PostgreSQL's advisory lock for migrations."""
REFUSALS = ("authentication failed", "no password supplied", "no pg_hba.conf entry")
"""What PostgreSQL's client says when it is not let in; its errors of connecting carry no code."""
MIGRATIONS = Path(__file__).with_name("migrations")


def database_url(text: str, password_file: Path | None = None) -> sa.URL:
    """The URL of a catalog: `sqlite:///PATH`, `postgresql://USER@HOST/DATABASE`. Raises `UsageError`, `DeniedError`."""
    try:
        url = sa.make_url(text)
    except exc.ArgumentError:
        raise UsageError("the catalog's URL is malformed", hint="postgresql://USER@HOST/DATABASE") from None
    if url.password is not None or "password" in url.query:
        raise UsageError(
            "the catalog's URL holds a password",
            hint="put it into a file and name that: LIVEMOUNT_CATALOG_PASSWORD_FILE",
        )
    if url.drivername == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UsageError("the catalog's URL names no file", hint="sqlite:////var/lib/livemount/catalog.sqlite")
        return url.set(drivername="sqlite+pysqlite")
    if url.drivername != "postgresql":
        raise UsageError(f"the catalog cannot be kept in {url.drivername!r}", hint="sqlite or postgresql")
    if password_file is not None:
        url = url.set(password=read_secret(password_file))
    return url.set(drivername="postgresql+psycopg")


class Database:
    """An open catalog. May be used from any thread; not across a fork."""

    def __init__(self, url: sa.URL) -> None:
        """Open it, making or migrating it first where that is needed.

        Raises `UnavailableError`, `DeniedError`, `CorruptError`, `UnsupportedError` for the schema of newer software.
        """
        self.url = url
        self.shown = url.render_as_string(hide_password=True)
        self._engine = _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
        try:
            self._migrate()
        except BaseException:
            self._engine.dispose()
            raise

    def close(self) -> None:
        """Let go of its connections."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that sees the catalog as it was at one time."""
        with self._errors(), self._engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that writes; what it has written is there when it ends, or nothing when it raises."""
        with self._errors(), self._engine.connect() as connection:
            connection = connection.execution_options(write=True)
            if self.url.get_backend_name() == "postgresql":
                connection = connection.execution_options(isolation_level="READ COMMITTED")
            with connection.begin():
                yield connection

    def now(self, connection: sa.Connection) -> datetime:
        """The time by the clock that all who use the catalog share: PostgreSQL's; SQLite's are of one machine."""
        if self.url.get_backend_name() == "postgresql":
            return connection.execute(sa.select(sa.func.clock_timestamp(type_=Utc))).scalar_one()
        return datetime.now(UTC)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except exc.OperationalError as error:
            text = _reason(error)
            if any(refusal in text for refusal in REFUSALS):
                raise DeniedError(f"the catalog {self.shown} lets nobody in: {text}") from error
            raise UnavailableError(f"the catalog {self.shown} cannot be used: {text}") from error
        except exc.DatabaseError as error:
            text = _reason(error)
            if isinstance(error.orig, sqlite3.DatabaseError) and not isinstance(error.orig, sqlite3.IntegrityError):
                raise CorruptError(
                    f"the catalog {self.shown} is damaged: {text}", hint="`livemount catalog rebuild` makes it anew"
                ) from error
            raise

    def _version(self, connection: sa.Connection) -> str | None:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()

    def _migrate(self) -> None:
        with self.reading() as connection:
            version = self._version(connection)
        if version == HEAD:
            return
        with self.writing() as connection:
            if self.url.get_backend_name() == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            version = self._version(connection)
            if version is not None and version > HEAD:
                raise UnsupportedError(
                    f"the catalog {self.shown} has the schema {version}, newer than this software knows ({HEAD})",
                    hint="use the newer livemount that made it, or another catalog (LIVEMOUNT_CATALOG)",
                )
            if version != HEAD:
                upgrade(connection)


def upgrade(connection: sa.Connection, to: str = HEAD) -> None:
    """Bring a catalog to a version of the schema, within the connection's transaction."""
    # Alembic takes a while to import, and nearly never has anything to do.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def _reason(error: exc.DBAPIError) -> str:
    return " ".join(str(error.orig).split())


def _create(path: Path) -> None:
    """An empty file of mode 0600. It gets its name after it was closed: closing any descriptor of a file gives up all
    locks that SQLite has on it in this process, and then another process deletes a log that is in use.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        os.link(name, path)
    except FileExistsError:
        pass
    finally:
        Path(name).unlink()


def _sqlite(url: sa.URL) -> sa.Engine:
    path = Path(str(url.database))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _create(path)
    except OSError as error:
        raise UnavailableError(f"the catalog {path} cannot be opened: {error.strerror}") from error
    engine = sa.create_engine(url, connect_args={"timeout": PATIENCE})

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # transactions begin when we say so, and hold DDL too
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: sa.Connection) -> None:
        # One that writes takes its lock at once: begun as a reader, it could find that another wrote meanwhile.
        immediate = connection.get_execution_options().get("write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def _postgresql(url: sa.URL) -> sa.Engine:
    return sa.create_engine(
        url, isolation_level="REPEATABLE READ", pool_pre_ping=True, connect_args={"connect_timeout": PATIENCE}
    )
