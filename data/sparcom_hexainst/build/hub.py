"""Fetch the sources of the natural half from the Hugging Face hub, at the newest or a given commit.

Files stay in the hub's own cache. The commits are reported, so that a later build can use the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sparcom_data.errors import InvalidInputError, SparcomError
from sparcom_data.hub import REACH_SECONDS, hub_endpoint, transport_errors, why_unreachable
from sparcom_hexainst.build.local import Found
from sparcom_hexainst.build.sources import SOURCES, Source
from sparcom_hexainst.categories import CATEGORIES


class HubError(SparcomError):
    """The hub cannot be reached."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The sources of all categories, and the commit of each source's data set."""

    found: list[Found]
    revisions: dict[str, str]


def fetch_sources(revisions: Mapping[str, str] | None = None, endpoint: str | None = None) -> Fetched:
    """Fetch every source that is not in the cache.

    Args:
        revisions: commit, branch or tag per source name; the newest commit for other sources.

    Raises:
        HubError: the hub does not answer within five seconds.
        InvalidInputError: sources are missing on the hub, or lack that revision; lists each with a remedy.
    """
    base = hub_endpoint(endpoint)
    if problem := why_unreachable(f"{base}/api/datasets/{SOURCES[0].hub.dataset}", base):
        raise HubError(problem)
    fetched: dict[str, tuple[Path, ...]] = {}
    commits: dict[str, str] = {}
    problems: list[str] = []
    unavailable: tuple[type[Exception], ...] = (ValueError, *transport_errors())
    for source in SOURCES:
        try:
            commits[source.name], fetched[source.name] = _fetch(source, (revisions or {}).get(source.name), base)
        except unavailable as error:
            problems.append(_explain(source, error))
    if problems:
        raise InvalidInputError(problems)
    by_category = {category: source for source in SOURCES for category in source.categories}
    found = [Found(name, by_category[name], None, fetched[by_category[name].name]) for name in CATEGORIES]
    return Fetched(found, commits)


def _fetch(source: Source, revision: str | None, base: str) -> tuple[str, tuple[Path, ...]]:
    from huggingface_hub import HfApi, hf_hub_download

    location = source.hub
    info: Any = HfApi(endpoint=base).dataset_info(location.dataset, revision=revision, timeout=REACH_SECONDS)
    names = sorted(item.rfilename for item in info.siblings or [])
    wanted = [name for name in names if any(fnmatch(name, pattern) for pattern in location.patterns)]
    if not wanted:
        raise ValueError(f"none of its files matches {' or '.join(location.patterns[:3])}")
    paths = [
        hf_hub_download(location.dataset, name, repo_type="dataset", revision=info.sha, endpoint=base)
        for name in wanted
    ]
    return str(info.sha), tuple(Path(path) for path in paths)


def _explain(source: Source, error: Exception) -> str:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"{', '.join(source.categories)}: {source.title} could not be fetched from the hub's data set "
        f"{source.hub.dataset} ({reason}). Try again, or put it into a folder yourself "
        f"(as a file or folder whose name begins with {source.local[0]!r}) and give that folder with --natural; "
        "--synthetic-only builds without the natural half"
    )
