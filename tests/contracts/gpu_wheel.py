"""Fetch vLLM's GPU wheels for the contract tests: their Python sources, and the schemas of their compiled ops.

    python tests/contracts/gpu_wheel.py [VERSION …]

pip downloads each wheel without its dependencies, about 300 MB. `.contracts/vllm-VERSION` then holds everything but
the compiled libraries, about 120 MB. Instead of each library there is a file with the schemas of its ops, which the
library stores as plain text.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("0.24.0", "0.33.0")  # the lowest and the highest that are supported
SCHEMAS = ".schemas"
_SCHEMA = re.compile(rb"(?<=\0)[A-Za-z_]\w*(?:\.\w+)?\([ -~\n]*\)\s*->\s*[ -~]+(?=\0)")


def site(version: str) -> Path:
    """Return the folder of a version; it is complete if it exists."""
    return ROOT / ".contracts" / f"vllm-{version}"


def schemas_of(library: bytes) -> list[str]:
    """Return the schemas of ops in a compiled library, in one line each."""
    return [" ".join(found.decode().split()) for found in _SCHEMA.findall(library)]


def unpack(wheel: Path, folder: Path) -> None:
    """Write the sources and schemas of a wheel to `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".so"):
                module = folder / name.replace(".".join(Path(name).name.split(".")[1:]), SCHEMAS[1:])
                module.parent.mkdir(parents=True, exist_ok=True)
                module.write_text("\n".join(schemas_of(archive.read(name))))
            elif ".data/" not in name and not name.endswith((".h", ".hpp", ".cuh")):
                archive.extract(name, folder)


def fetch(version: str) -> None:
    """Download and unpack a version, unless its folder exists. Raises CalledProcessError without a network."""
    target = site(version)
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix="partial-") as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*command, "--only-binary=:all:", "--dest", temporary, f"vllm=={version}"], check=True)
        unpack(next(Path(temporary).glob("*.whl")), Path(temporary) / "site")
        (Path(temporary) / "site").rename(target)


if __name__ == "__main__":
    for version in sys.argv[1:] or VERSIONS:
        fetch(version)
