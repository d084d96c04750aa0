"""Open the archives that a command names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparcom_data.archive import Archive

_ON_SERVER = re.compile(r"https?://.+/v1/archives/[^/]+/zarr/?")


def open_named(where: str, key: str | None) -> Archive:
    """Open a folder or an address. The API key goes only to addresses of archives on a SPARCOM server."""
    from sparcom_data.archive import open_archive

    headers = {"Authorization": f"Bearer {key}"} if key and _ON_SERVER.fullmatch(where) else None
    return open_archive(where, headers=headers)
