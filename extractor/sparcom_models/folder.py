"""Create model folders atomically and record their provenance in SOURCE.json.

Files are written to a hidden sibling folder, which is renamed at the end. SOURCE.json lists every file with its size,
so that a damaged folder is not mistaken for a finished one.
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


class ProgressCallback(Protocol):
    """Reports progress: the step, `done` of `total` (0 of 0 if unknown), and a note such as a loss."""

    def __call__(self, step: str, done: int = 0, total: int = 0, note: str = "") -> None: ...


def no_progress(step: str, done: int = 0, total: int = 0, note: str = "") -> None:
    """Ignore progress; the default callback."""


@dataclass(frozen=True, slots=True)
class MadeModel:
    """A finished model folder; `fresh` is False if it existed before."""

    path: Path
    fresh: bool
    source: dict[str, Any]


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_source(folder: Path) -> dict[str, Any] | None:
    """Return the content of SOURCE.json; None if the folder is absent, was not made here, or lacks a file."""
    try:
        source = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
        complete = all((folder / name).stat().st_size == facts["bytes"] for name, facts in source["files"].items())
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return source if complete else None


def find_finished(folder: Path, recipe: dict[str, Any]) -> MadeModel | None:
    """Return the model that this recipe made in `folder`; None if the folder is absent or empty.

    Raises:
        ModelUnavailableError: the folder holds something else.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    source = read_source(folder)
    problem, differing = "", [key for key, value in recipe.items() if (source or {}).get(key) != value]
    if source is None:
        problem = f"A model needs a new folder; {folder} exists and is not a finished model folder."
    elif differing:
        found, wanted = (", ".join(f"{key} {values.get(key)}" for key in differing) for values in (source, recipe))
        problem = f"{folder} holds a model made by another recipe ({found} instead of {wanted})."
    if source is None or differing:
        raise ModelUnavailableError(f"{problem} Remove it or choose another --output.")
    return MadeModel(folder, fresh=False, source=source)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `target`, renamed to `target` when the block succeeds.

    An error or interrupt leaves nothing behind. Leftovers of killed runs are removed after a day.
    """
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for stale in target.parent.glob(f".{target.name}.*.partial"):
            if time.time() - stale.stat().st_mtime > _STALE_SECONDS:  # else it may belong to a run in progress
                shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        yield partial
        _publish(partial, target)
    except OSError as error:
        raise StorageError(
            f"The model could not be written to {target}: {error}. Nothing was left behind. "
            "Free some space (fetching a model needs 1 GB) or choose another --output."
        ) from error
    finally:
        if partial:
            shutil.rmtree(partial, ignore_errors=True)


def _publish(partial: Path, target: Path) -> None:
    """Flush the files to disk, then rename. The folder of a faster concurrent run is kept."""
    for path in [*partial.iterdir(), partial]:
        path.chmod(0o755 if path.is_dir() else 0o644)
        sync_path(path)
    try:
        partial.rename(target)
    except OSError:
        if read_source(target) is None:
            raise
    sync_path(target.parent)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_source(folder: Path, recipe: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Write SOURCE.json: recipe, facts, and the name, bytes and SHA-256 of every other file in `folder`."""
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in sorted(folder.iterdir())}
    source = {**recipe, **facts, "files": files}
    write_json(folder / SOURCE, source)
    return source
