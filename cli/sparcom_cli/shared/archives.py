"""Open the archives that a command names."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from sparcom_cli.shared.options import DEFAULT_SERVER

if TYPE_CHECKING:
    from sparcom_data.archive import Archive

_ON_SERVER = re.compile(r"https?://.+/v1/archives/[^/]+/zarr/?")
_PORTS = {"http": 80, "https": 443}


def open_named(where: str, key: str | None) -> Archive:
    """Open a folder or an address.

    The API key goes only to addresses of archives on a SPARCOM server: one that was given with --key to each of them,
    one from SPARCOM_API_KEY only to the server of SPARCOM_SERVER. Anyone may have sent the user an address.
    """
    from sparcom_data.archive import open_archive

    context = click.get_current_context(silent=True)
    is_given = context is None or context.get_parameter_source("key") is not ParameterSource.ENVIRONMENT
    takes_key = bool(_ON_SERVER.fullmatch(where)) and (is_given or _origin(where) == _origin(_own_server()))
    return open_archive(where, headers={"Authorization": f"Bearer {key}"} if key and takes_key else None)


def _own_server() -> str:
    return os.environ.get("SPARCOM_SERVER") or DEFAULT_SERVER


def _origin(address: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of an address; a port that is no number raises UsageError."""
    parts = urlsplit(address)
    try:
        return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
    except ValueError as error:
        raise click.UsageError(f"an address needs a port between 0 and 65535; {address!r} has another") from error
