"""Write the files of an analysis into a folder. A folder without metrics.json and report.html is unfinished.

1. Remove metrics.json and report.html of an earlier analysis, also in subfolders.
2. List the files of both analyses in `.sparcom-files`, so that an interrupted run can be cleaned up.
3. Remove files that only the earlier analysis wrote, but none that others wrote. Write each new file atomically.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from sparcom_data.errors import InvalidInputError, StorageError
from sparcom_data.storage import PARTIAL_SUFFIX, storage_error, write_file

FIRST_REMOVED = ("metrics.json", "report.html")  # written last: their presence means that the folder is complete
NAMES = ".sparcom-files"


def check_output(folder: Path) -> None:
    """Create the folder and check that it is writable.

    Raises:
        InvalidInputError: the folder lies inside an archive.
        StorageError: the path is a file, or the folder cannot be created or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"the output must be a folder; {folder} is a file. Choose another --output")
    whole = folder.resolve()
    if inside := next((place for place in (whole, *whole.parents) if (place / "zarr.json").exists()), None):
        raise InvalidInputError(
            f"the output must be outside any archive; {folder} is in {inside}, a Zarr group. Choose another --output"
        )
    trial = folder / ".sparcom-trial"
    write_file(trial, [b""])
    trial.unlink(missing_ok=True)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace the files of an earlier analysis with these.

    Args:
        files: bytes by relative path, with the files that mark completion last.

    Raises:
        StorageError: the operating system refused; the last file is then absent.
    """
    earlier = _earlier(folder)
    for name in (*FIRST_REMOVED, *sorted(earlier)):
        if PurePosixPath(name).name in FIRST_REMOVED:
            _remove(folder / name)
    _write_names(folder, {*earlier, *files})
    for name in earlier - files.keys():
        _remove(folder / name)
    for begun in (folder / name for name in (*earlier, NAMES)):  # partial files of a killed analysis
        for left in begun.parent.glob(f"{glob.escape(begun.name)}.*{PARTIAL_SUFFIX}"):
            _remove(left)
    for name, data in files.items():
        write_file(folder / name, [data])
    _write_names(folder, files)


def _earlier(folder: Path) -> set[str]:
    """Return the files that earlier analyses listed; skip names that lead out of the folder."""
    try:
        held = json.loads((folder / NAMES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    paths = [PurePosixPath(name) for name in (held if isinstance(held, list) else ()) if isinstance(name, str)]
    return {str(path) for path in paths if path.parts and ".." not in path.parts and not path.is_absolute()}


def _write_names(folder: Path, names: Iterable[str]) -> None:
    write_file(folder / NAMES, [(json.dumps(sorted(names), indent=0) + "\n").encode()])


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
