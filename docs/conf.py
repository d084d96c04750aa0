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

from docutils import nodes
from sphinx import addnodes

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
nitpick_ignore_regex = [
    ("py:(class|data|obj|func|meth)", r"(?!sparcom_).*"),
    ("py:class", r"sparcom_client\.effects\..*|sparcom_data\.progress\.Progress"),  # of no use to readers
]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin with a deeper heading, as an included CHANGELOG does

default_role = "code"  # docstrings mark code by single backticks
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # docstrings say shape and dtype
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autoclass_content = "class"

html_theme = "furo"
html_title = "SPARCOM"
html_show_sourcelink = False
html_copy_source = False
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
            title = "" if label.endswith(".md") else label  # the site shows a page's title, not its file name
            return f"{image}[{title}]({inside}{'#' + anchor if anchor else ''})"
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


_COLON, _COMMA = "\ue000", "\ue001"
_NAMES = re.compile(r"( +)(\w+(?:, \w+)+): (?=\S)")
_MARKUP = re.compile(r"\*\*(?=\w)|(?<=\w)_(?!\w)")


def _read_docstring(_app: Any, what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    """Prepare a docstring for napoleon: its extension reads some of our forms in another way."""
    for number, line in enumerate(lines):  # outside of code, `**changes` and `prefix_` are no markup
        parts = line.split("`")
        parts[::2] = [_MARKUP.sub(lambda found: re.sub("(.)", r"\\\1", found[0]), part) for part in parts[::2]]
        lines[number] = "`".join(parts)
    returns = False  # "ISNs per instruction: int64 (n,)" does not name a type before the colon
    for number, line in enumerate(lines):
        returns = line.strip() in ("Returns:", "Yields:") or (returns and (not line or line.startswith(" ")))
        if (what == "property" and not number) or (returns and line.startswith(" ")):
            lines[number] = line.replace(":", _COLON)
    attributes = [number for number, line in enumerate(lines) if line.strip() == "Attributes:"]
    for number in range(len(lines) - 1, attributes[0] if attributes else len(lines), -1):
        if found := _NAMES.match(lines[number]):  # one entry, which docutils would split into a type and a name
            lines[number] = f"{found[1]}{found[2].replace(', ', _COMMA)}: {lines[number][found.end() :]}"


def _restore_colons(_app: Any, _what: str, _name: str, _object: object, _options: object, lines: list[str]) -> None:
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def _shorter(text: str | None) -> str | None:
    """Write array types as the source does: NDArray[uint8]."""
    return text and re.sub(r"(?:~?numpy\.)?ndarray\[.*?dtype\[([^\[\]]+)\]\]", r"NDArray[\1]", text)


def _shorten_signature(
    _app: Any, _what: str, _name: str, _object: object, _options: object, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    return _shorter(signature), _shorter(returned)


def _finish_page(_app: Any, doctree: nodes.document) -> None:
    """Shorten array types of properties, name the fields of classes, and keep options on one line."""
    for node in doctree.findall(addnodes.desc_annotation):
        if (shorter := _shorter(node.astext())) != node.astext():
            node.children = [nodes.Text(str(shorter))]
    for text in list(doctree.findall(nodes.Text)):
        if _COMMA in text:
            text.parent.replace(text, nodes.Text(text.replace(_COMMA, ", ")))
        elif text == "Variables" and isinstance(text.parent, nodes.field_name):
            text.parent.replace(text, nodes.Text("Attributes"))
    for literal in doctree.findall(nodes.literal):
        if literal.astext().startswith("-"):
            literal["classes"].append("option")


def setup(app: Any) -> None:
    """Register the hooks above; that for docstrings before napoleon's own (priority 500)."""
    app.connect("source-read", _read_source)
    app.connect("autodoc-process-docstring", _read_docstring, priority=400)
    app.connect("autodoc-process-docstring", _restore_colons, priority=600)
    app.connect("autodoc-process-signature", _shorten_signature)
    app.connect("doctree-read", _finish_page)
