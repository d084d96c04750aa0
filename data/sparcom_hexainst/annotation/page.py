"""Renders a form as one HTML page that holds everything, loads nothing, and runs no script but its own.

The instructions lie in the page as JSON, where no text of theirs can end the element that holds it; the page's script
shows them as text. Script and style are allowed by their hashes alone, so that even a slip in that would run nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files

from sparcom_hexainst.annotation.schema import Form

TITLES = {"annotation": "Annotation of instructions", "adjudication": "Adjudication of instructions"}
# What could end the element, open a comment in it, or end a line in old readers of JavaScript.
ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


def render_page(form: Form) -> str:
    """The form as HTML text."""
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
    """The form and its hash as JSON that may stand in an HTML element of any kind."""
    content = {**form.model_dump(mode="json", exclude_none=True), "sha256": form.sha256}
    content["categories"] = list(form.categories)
    return json.dumps(content, ensure_ascii=False).translate(ESCAPES)


def _asset(name: str) -> str:
    return (files("sparcom_hexainst.annotation") / "templates" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """A text's hash, as a content security policy names what may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
