"""The two pages for people: plain HTML files beside this one, sent with a policy that lets them load nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi.responses import HTMLResponse

_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@cache
def _read(name: str) -> tuple[str, str]:
    """A page and its Content-Security-Policy: only the script that is in the file may run, by its hash."""
    text = (files(__name__) / name).read_text(encoding="utf-8")
    hashes = " ".join(f"'sha256-{_digest(script)}'" for script in _SCRIPT.findall(text))
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def load_page(name: str) -> HTMLResponse:
    """One of the pages, as an answer."""
    text, policy = _read(name)
    return HTMLResponse(
        text, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    )
