"""`sparcom keys`: create, list and revoke API keys, in a server's data folder or over REST."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sparcom_cli.shared.options import FOLDER, combined, limit_option, option, optional

if TYPE_CHECKING:
    from sparcom_server.database.database import Database
    from sparcom_server.schemas.reports import KeyReport, NewKeyReport

MOST = 1_000_000  # keys of a list
LINE = "{:<16}  {:<20}  {:<5}  {:<10}  {:<10}  {:<10}  {}"
where_options = combined(
    option("--data-dir", FOLDER, Path("sparcom-data"), "Use the data folder of a server that runs here or is stopped."),
    optional("--server", None, "none", "Ask this server instead of the data folder.", metavar="URL"),
    optional("--key", None, "none", "Send this admin's key to --server.", envvar="SPARCOM_API_KEY", show_envvar=True),
)


@click.group()
def keys() -> None:
    """Create, list and revoke API keys.

    Once a server has had a key, every request needs one. A running server notices changes within a second.
    """


@keys.command()
@click.argument("name")
@option("--role", click.Choice(["user", "admin"]), "user", "Allow access to the owner's jobs only, or to everything.")
@limit_option("Limit the key.")
@where_options
def create(name: str, role: str, limits: dict[str, int], **where: Any) -> None:
    """Create a key for the owner NAME, and print it. It is not shown again.

    Keys with one NAME see the same jobs and archives. To replace a key, create another and revoke the first.
    """
    with _open(create=True, **where) as found:
        new = found.create_key(name, role=role, limits=limits)
    click.echo(f"key {new.id} of {new.name}, role {new.role}; it is not shown again:", err=True)
    click.echo(new.key)


@keys.command("list")
@where_options
def list_keys(**where: Any) -> None:
    """List the keys, newest first, without their secrets."""
    with _open(**where) as found:
        click.echo(LINE.format("id", "name", "role", "created", "last used", "revoked", "limits"))
        for key in found.list_keys():
            days = [(time or "")[:10] for time in (key.created, key.last_used, key.revoked)]
            limits = [f"{name}={value:,}" for name, value in key.limits if value is not None]
            click.echo(LINE.format(key.id, key.name, key.role, *days, " ".join(limits)).rstrip())


@keys.command()
@click.argument("key_id", metavar="ID")
@where_options
def revoke(key_id: str, **where: Any) -> None:
    """Refuse the key ID from now on. Jobs and archives stay."""
    with _open(**where) as found:
        gone = found.revoke_key(key_id)
    click.echo(f"revoked {gone.id} of {gone.name}")


@contextmanager
def _open(data_dir: Path, server: str | None, key: str | None, create: bool = False) -> Iterator[Any]:
    """Yield an object with the methods of `_Folder`, for a server or a data folder. create: make a missing folder."""
    if server is not None:
        from sparcom_client import Client

        with Client(server, key) as client:
            yield client
        return
    from sparcom_data.errors import InvalidInputError
    from sparcom_server.database.database import FILE, Database, database_url

    if not create and not (data_dir / FILE).is_file():
        raise InvalidInputError(f"a server's data folder has a file {FILE}; {data_dir} has none. Check --data-dir")
    database = Database(database_url(data_dir))
    try:
        yield _Folder(database)
    finally:
        database.close()


class _Folder:
    """The keys of a data folder."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create_key(self, name: str, *, role: str, limits: dict[str, int]) -> NewKeyReport:
        """Store a new key. Raises InvalidInputError if its name or a limit breaks a rule."""
        from pydantic import ValidationError

        from sparcom_data.errors import InvalidInputError
        from sparcom_data.instructions import describe_validation_error
        from sparcom_server.access.keys import create_key
        from sparcom_server.schemas.requests import KeyRequest

        try:
            request = KeyRequest.model_validate({"name": name, "role": role, "limits": limits})
        except ValidationError as error:
            raise InvalidInputError(describe_validation_error(error, "key")) from None
        return self._database.transaction(lambda session: create_key(session, request))

    def list_keys(self) -> Iterable[KeyReport]:
        """Return all keys, newest first."""
        from sparcom_server.access.keys import list_keys

        return self._database.transaction(lambda session: list_keys(session, MOST)).data

    def revoke_key(self, key_id: str) -> KeyReport:
        """Refuse a key."""
        from sparcom_server.access.keys import revoke_key

        return self._database.transaction(lambda session: revoke_key(session, key_id))
