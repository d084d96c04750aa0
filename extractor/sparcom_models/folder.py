"""A model folder that is either finished or not there, and says where it came from.

Everything is written to a hidden sibling folder and renamed at the end. SOURCE.json lists every file with its size, so
that a folder somebody has since damaged is not taken for a finished one. Knows nothing of what a model is.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sparcom_data.errors import ModelUnavailableError, StorageError
from sparcom_data.storage import sync_path

SOURCE = "SOURCE.json"
_STALE_SECONDS = 24 * 3600


class Tell(Protocol):
    """Called as work goes on: the step, and how many bytes of how many are done (0 of 0 where unknown)."""

    def __call__(self, step: str, done: int = 0, total: int = 0) -> None: ...


def silent(step: str, done: int = 0, total: int = 0) -> None:
    """The `Tell` that tells nobody."""


@dataclass(frozen=True, slots=True)
class MadeModel:
    """A finished model folder; `fresh` is False where it was there already."""

    path: Path
    fresh: bool
    source: dict[str, Any]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_source(folder: Path) -> dict[str, Any] | None:
    """What SOURCE.json of a finished folder says; None where the folder is absent, foreign or lacks a file."""
    try:
        source = json.loads((folder / SOURCE).read_text())
        complete = all((folder / name).stat().st_size == facts["bytes"] for name, facts in source["files"].items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return source if complete else None


def finished(folder: Path, recipe: dict[str, Any]) -> MadeModel | None:
    """The model that was made in `folder` by this recipe, or None where nothing is there.

    Raises `ModelUnavailableError` where something else is in the way.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    source = read_source(folder)
    if source is None:
        raise ModelUnavailableError(
            f"A model is made in a new folder, but {folder} exists and is no finished model of ours. "
            "Remove it or choose another --output."
        )
    differing = {key: source.get(key) for key, value in recipe.items() if source.get(key) != value}
    if differing:
        raise ModelUnavailableError(
            f"{folder} holds a model made otherwise ({_listed(differing)} in place of "
            f"{_listed({key: recipe[key] for key in differing})}). Remove it or choose another --output."
        )
    return MadeModel(folder, fresh=False, source=source)


def _listed(facts: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` to write into; it takes the name of `target` when the block ends well.

    On an error or an interrupt nothing is left behind; what a kill left is swept up a day later.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise _storage_error(target, error) from error
    try:
        yield partial
        _publish(partial, target)
    except OSError as error:
        raise _storage_error(target, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(target: Path) -> None:
    """Remove what killed runs left beside `target`; younger folders may belong to a run that goes on."""
    for partial in target.parent.glob(f".{target.name}.*.partial"):
        if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, target: Path) -> None:
    """Make the files durable, then rename; where another run was quicker, its finished folder stands."""
    for path in [*partial.iterdir(), partial]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync_path(path)
    try:
        partial.rename(target)
    except OSError:
        if read_source(target) is None:
            raise
    sync_path(target.parent)


def _storage_error(target: Path, error: OSError) -> StorageError:
    return StorageError(
        f"The model could not be written to {target}: {error}. Nothing was left behind; "
        "free some space (a fetched model needs 1 GB while it is made) or choose another --output."
    )


def write_source(folder: Path, recipe: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Write SOURCE.json: the recipe, the facts, and name, bytes and SHA-256 of every other file in `folder`."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    source = {**recipe, **facts, "files": files}
    (folder / SOURCE).write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n")
    return source
