"""Render a form as one self-contained HTML page that loads nothing and runs only its own script.

The page embeds the instructions as JSON, escaped so that no text can close the enclosing element. The script shows
them as text. A content security policy allows script and style by hash only, so an escaping error could run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from sparcom_hexainst.annotation.schema import Form

TITLES = {"annotation": "Annotation of instructions", "adjudication": "Adjudication of instructions"}
# Characters that could close the element, open a comment in it, or end a line in old JavaScript engines.
ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render_page(form: Form) -> str:
    """Return the form as HTML."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sparcom_hexainst.annotation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    style, script = _asset("annotate.css"), _asset("annotate.js")
    return environment.get_template("annotate.html.j2").render(
        title=TITLES[form.kind],
        form=form,
        style=style,
        script=script,
        policy=f"default-src 'none'; script-src {_source(script)}; style-src {_source(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        data=page_json(form),
    )


def page_json(form: Form) -> str:
    """Return the form and its hash as JSON that is safe inside any HTML element."""
    content = {**form.model_dump(mode="json", exclude_none=True), "sha256": form.sha256}
    content["categories"] = list(form.categories)
    return json.dumps(content, ensure_ascii=False).translate(ESCAPES)


def _asset(name: str) -> str:
    return (files("sparcom_hexainst.annotation") / "templates" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """Return the hash of a text as a source expression of a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
