"""Sphinx configuration of the site: `make docs` builds it into docs/_build/html, and every warning is an error.

Pages are read on the site and in the repository. Links therefore stay relative there. Before Sphinx parses a page,
`link_files` turns links to files outside docs/ into addresses of the repository.
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
for package_folder in ("data", "extractor", "server", "analysis", "cli"):
    sys.path.insert(0, str(ROOT / package_folder))

_project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "SPARCOM"
author = "The SPARCOM developers"
copyright = author  # noqa: A001  (the name is Sphinx's)
version = release = _project["version"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
exclude_patterns = ["_build", "Thumbs.db"]
nitpicky = True
# Docstrings state shapes and units where Sphinx expects the name of a class, and types of other projects need a network
# to look up. So only full names of the project's own classes are checked.
nitpick_ignore_regex = [("py:(class|data|obj|func|meth)", r"(?!sparcom_).*")]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin with a deeper heading, as an included CHANGELOG does

default_role = "code"  # docstrings mark code by single backticks
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"

html_theme = "furo"
html_title = "SPARCOM"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}
copybutton_exclude = ".linenos, .gp, .go"

# Pages that show a file of the repository's root.
INCLUDED = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
_LINK = re.compile(r"(?P<code>`+)[^`]+(?P=code)|(?P<image>!?)\[(?P<label>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")
_FENCE = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)


def repository() -> str:
    """Return the address of the repository's files, or "" if pyproject.toml names none."""
    urls = {name.lower(): url for name, url in _project.get("urls", {}).items()}
    address = next((urls[name] for name in ("source", "repository", "homepage") if name in urls), "")
    return f"{address.rstrip('/').removesuffix('.git')}/blob/main" if address else ""


def link_files(text: str, folder: Path, page: Path) -> str:
    """Return Markdown with every relative link set right for a page of the site.

    Args:
        text: Markdown. Fenced blocks stay as they are.
        folder: the links of `text` are relative to this folder.
        page: folder of the page that shows it.
    """

    def replaced(found: re.Match[str]) -> str:
        image, label, target = found["image"], found["label"], found["target"]
        if found["code"] or re.match(r"[a-z]+:|#|/|<", target):
            return found[0]
        name, _, anchor = target.partition("#")
        path = (folder / name).resolve()
        if path.is_relative_to(DOCS) and not path.is_dir():
            inside = os.path.relpath(path, page)
            return f"{image}[{label}]({inside}{'#' + anchor if anchor else ''})"
        if not path.exists() or not path.is_relative_to(ROOT):
            return found[0]  # Sphinx warns
        address = repository()
        return f"[{label}]({address}/{path.relative_to(ROOT).as_posix()})" if address else label

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(replaced, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(replaced, text[end:])])


def _read_source(_app: Any, docname: str, source: list[str]) -> None:
    page = DOCS / docname
    if page.with_suffix(".md").exists():
        shown = ROOT / INCLUDED[docname] if docname in INCLUDED else None
        text = shown.read_text(encoding="utf-8") if shown else source[0]
        source[0] = link_files(text, shown.parent if shown else page.parent, page.parent)


def _escape_docstring(_app: Any, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Escape what reStructuredText would read as markup: `**changes` and `prefix_` outside of code."""
    for number, line in enumerate(lines):
        parts = line.split("`")
        parts[::2] = [
            re.sub(r"\*\*(?=\w)|(?<=\w)_(?!\w)", lambda m: re.sub(r"(.)", r"\\\1", m[0]), part) for part in parts[::2]
        ]
        lines[number] = "`".join(parts)


def setup(app: Any) -> None:
    """Register the reader of pages, and the escape of docstrings before napoleon's own hook (priority 500)."""
    app.connect("source-read", _read_source)
    app.connect("autodoc-process-docstring", _escape_docstring, priority=400)
