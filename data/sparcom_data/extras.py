"""The pip command that installs an extra of SPARCOM from the origin of this installation."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any
from urllib.parse import unquote, urlsplit


def install_command(extra: str) -> str:
    """Return the pip command that installs `extra`: one name, or several separated by commas.

    PEP 610 records the origin of an installation. SPARCOM is on no package index, so `pip install sparcom[analysis]`
    would find nothing.
    """
    origin = _origin()
    url = origin.get("url", "")
    if url.startswith("file://") and "dir_info" in origin:
        editable = "--editable " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}{shlex.quote(f'{unquote(urlsplit(url).path)}[{extra}]')}"
    if "vcs_info" in origin:
        version = origin["vcs_info"].get("requested_revision")
        return f"pip install 'sparcom[{extra}] @ {origin['vcs_info']['vcs']}+{url}{f'@{version}' if version else ''}'"
    return f"pip install '.[{extra}]' in the folder of SPARCOM's sources"


def _origin() -> dict[str, Any]:
    """Return the parsed direct_url.json of the installation, empty if there is none."""
    try:
        found: dict[str, Any] = json.loads(distribution("sparcom").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return {}
    return found
