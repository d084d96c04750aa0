"""Puts the files of an analysis into a folder, so that the folder is of one analysis or says that it is unfinished.

1. metrics.json and report.html of an earlier analysis go first, those of subfolders too: without them it is unfinished.
2. `.sparcom-files` names the files of both analyses from here on; then each is written, whole, in the order given.
3. What the earlier one made and this one does not is removed. Files that no analysis made stay as they are.

Stopped anywhere, the next analysis finds in `.sparcom-files` what the stopped one may have left.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from sparcom_data.errors import InvalidInputError, StorageError
from sparcom_data.storage import PARTIAL_SUFFIX, storage_error, write_file

FIRST_REMOVED = ("metrics.json", "report.html")  # the last to be written: with them all the others are there
NAMES = ".sparcom-files"
_TRIAL = ".sparcom-trial"
_ZARR = "zarr.json"


def check_output(folder: Path) -> None:
    """Make the folder and try to write into it.

    Raises:
        InvalidInputError: it lies in an archive, whose files are no place for others.
        StorageError: it is a file, or cannot be made or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"the output must be a folder; {folder} is a file. Choose another --output")
    whole = folder.resolve()
    if inside := next((place for place in (whole, *whole.parents) if (place / _ZARR).exists()), None):
        raise InvalidInputError(
            f"results must lie outside of archives; {folder} is in {inside}, a Zarr group. Choose another --output"
        )
    trial = folder / _TRIAL
    write_file(trial, [b""])
    trial.unlink(missing_ok=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace the files of an earlier analysis by these: bytes by path, those that show that all are there last.

    Raises:
        StorageError: the operating system refused; the last file is then not there.
    """
    earlier = _earlier(folder)
    for name in (*FIRST_REMOVED, *(name for name in sorted(earlier) if PurePosixPath(name).name in FIRST_REMOVED)):
        _remove(folder / name)
    _write_names(folder, {*earlier, *files})
    for name in earlier - files.keys():
        _remove(folder / name)
    for begun in (folder / name for name in {*earlier, NAMES}):  # by an analysis that was killed
        for left in begun.parent.glob(f"{glob.escape(begun.name)}.*{PARTIAL_SUFFIX}"):
            _remove(left)
    for name, data in files.items():
        write_file(folder / name, [data])
    _write_names(folder, files)


def _earlier(folder: Path) -> set[str]:
    """Names of the files that analyses made here; names that lead out of the folder are none of ours."""
    try:
        names = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    held = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return {name for name in held if (parts := PurePosixPath(name).parts) and not {"/", "//", ".."} & {*parts}}


def _write_names(folder: Path, names: Iterable[str]) -> None:
    write_file(folder / NAMES, [(json.dumps(sorted(names), indent=0) + "\n").encode()])


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
