"""The site builds without a warning, every page is in a table of contents, and no link or anchor is broken."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import sparcom_analysis

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """Collects anchors and links of one HTML page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


def sphinx(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Run the builder of `make docs`."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", source, output]
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    output = tmp_path_factory.mktemp("site")
    done = sphinx(DOCS, output)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return output


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    """Return every page of the site, parsed, without those that show source code."""
    files = [path for path in site.rglob("*.html") if "_modules" not in path.parts]
    return {path: Page(path.read_text(encoding="utf-8")) for path in files}


def test_every_page_is_in_a_table_of_contents(pages: dict[Path, Page]) -> None:
    """The start page's navigation leads to every document; the index of decisions leads to the decision records."""
    documents = {path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    (top,) = {path for path in pages if path.name == "index.html" and (path.parent / "genindex.html").exists()}
    linked = {(top.parent / urlsplit(link).path).resolve() for link in pages[top].links if link.endswith(".html")}
    nested = {path for path in pages if path.name == "index.html" and path.resolve() in linked}
    for path in nested:
        linked |= {(path.parent / urlsplit(link).path).resolve() for link in pages[path].links}
    missing = [str(name) for name in documents if (top.parent / f"{name}.html").resolve() not in linked]
    assert not [name for name in missing if name != "index"]


def test_no_link_or_anchor_is_broken(pages: dict[Path, Page]) -> None:
    """Links within the site lead to existing files and anchors."""
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or "_modules" in parts.path:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert not broken


def test_every_public_name_is_in_the_reference(pages: dict[Path, Page]) -> None:
    """Each export of `sparcom_analysis`, and each plot, has an entry."""
    anchors = {anchor for path, page in pages.items() if path.parent.name == "api" for anchor in page.ids}
    described = {anchor.rsplit(".", 1)[-1] for anchor in anchors if anchor.startswith("sparcom_")}
    assert not {*sparcom_analysis.__all__, *dir(sparcom_analysis.plot)} - described - {"plot"}


def test_no_link_of_the_repository_is_broken() -> None:
    """Relative links in the Markdown files lead to existing files, for readers of the repository."""
    broken = []
    for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "data" / "README.md"]:
        text = re.sub(r"^( *)(```+).*?^\1\2", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^()\s]+)\)", text):
            parts = urlsplit(link)
            if not parts.scheme and parts.path and not (path.parent / unquote(parts.path)).exists():
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert not broken


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return the folder of a new site, with the project's configuration, in a repository of two files."""
    (tmp_path / "README.md").write_text("# Readme\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1"\n')
    (tmp_path / "docs" / "_static").mkdir(parents=True)
    shutil.copy(DOCS / "conf.py", tmp_path / "docs")
    shutil.copy(DOCS / "_static" / "site.css", tmp_path / "docs" / "_static")
    return tmp_path / "docs"


@pytest.mark.parametrize("link", ["missing.md", "#missing", "../missing.py", "index.md#missing"])
def test_a_broken_link_fails_the_build(link: str, copy: Path, tmp_path: Path) -> None:
    """A missing page, anchor or file is a warning, and every warning is an error."""
    (copy / "index.md").write_text(f"# Start\n\n[link]({link})\n")
    done = sphinx(copy, tmp_path / "html")
    assert done.returncode != 0
    assert "missing" in done.stderr


def test_a_page_outside_every_table_of_contents_fails_the_build(copy: Path, tmp_path: Path) -> None:
    """Readers could not find such a page."""
    (copy / "index.md").write_text("# Start\n")
    (copy / "lost.md").write_text("# Lost\n")
    assert "lost.md" in sphinx(copy, tmp_path / "html").stderr


@pytest.mark.parametrize("address", ["", "https://example.org/sparcom"])
def test_links_to_files_of_the_repository_leave_the_site(address: str, copy: Path, tmp_path: Path) -> None:
    """Links lead to the address in pyproject.toml; without an address they become plain text."""
    if address:
        with (tmp_path / "pyproject.toml").open("a") as project:
            project.write(f'[project.urls]\nSource = "{address}.git"\n')
    (copy / "index.md").write_text("# Start\n\n[the readme](../README.md) and `[code](../README.md)`\n")
    assert sphinx(copy, tmp_path / "html").returncode == 0
    html = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert "the readme" in html
    assert "[code](../README.md)" in html
    assert ("https://example.org/sparcom/blob/main/README.md" in html) == bool(address)
