"""The migrations make the tables that the code uses, on SQLite and on PostgreSQL."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

from sparcom_server.database.database import Database
from sparcom_server.database.tables import Base


def test_migrations_make_the_tables(db_url: str, database: Database) -> None:
    """Tables, columns, types, indexes and keys are those of tables.py, as `alembic check` compares them."""
    engine = create_engine(db_url)
    with engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) == {*Base.metadata.tables, "alembic_version"}
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_opening_again_changes_nothing(db_url: str, database: Database) -> None:
    """A database that is up to date is opened as it is."""
    Database(db_url).close()
