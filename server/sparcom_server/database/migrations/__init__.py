"""Alembic's migrations. `make migration ARGS=MESSAGE` writes one from the difference to the tables."""
