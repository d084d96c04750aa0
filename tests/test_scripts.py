"""The scripts `./sparcom` and `.ci/run`, with fakes for the commands that they call."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORD = '#!/bin/sh\necho "$(basename "$0") $*" >> "{log}"\n'


def script(path: Path, text: str) -> Path:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_launcher_runs_the_installed_command(tmp_path: Path) -> None:
    """The launcher works from any folder and through a link, and passes on arguments and exit status."""
    launcher = Path(shutil.copy2(ROOT / "sparcom", tmp_path / "sparcom"))
    script(tmp_path / ".venv" / "bin" / "sparcom", '#!/bin/sh\nprintf "%s|" "$@"\nexit 7\n')
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(launcher)
    for command in (str(launcher), "./link"):
        done = subprocess.run([command, "a b", "--c"], cwd=tmp_path / "elsewhere", capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (7, "a b|--c|")


def test_the_launcher_names_the_missing_setup(tmp_path: Path) -> None:
    """Before the set-up there is no command to run; the message names `make setup`."""
    launcher = shutil.copy2(ROOT / "sparcom", tmp_path / "sparcom")
    done = subprocess.run([launcher, "--help"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: SPARCOM must be installed first;")
    assert done.stderr.endswith("Run: make setup\n")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a folder with .ci/run and with fake commands in bin; make and apt-get only record their calls."""
    script(tmp_path / ".ci" / "run", (ROOT / ".ci" / "run").read_text())
    for name in ("contracts", "aot", "reproduce", "wheel", "lowest"):
        script(tmp_path / ".ci" / name, RECORD.format(log=tmp_path / "log"))
    for name in ("bash", "dirname", "basename", "sh"):
        found = shutil.which(name)
        assert found is not None
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(found)
    script(tmp_path / "bin" / "id", "#!/bin/sh\necho 0\n")
    for name in ("make", "apt-get"):
        script(tmp_path / "bin" / name, RECORD.format(log=tmp_path / "log"))
    return tmp_path


def run_ci(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / ".ci" / "run"], env={"PATH": str(checkout / "bin")}, capture_output=True, text=True
    )


CHECKS = [
    *("make --no-print-directory check", "contracts ", "make --no-print-directory test-all ARGS=--strict-skips "),
    *("aot ", "reproduce ", "wheel ", "lowest "),
]
INSTALL = ["apt-get update -qq", "apt-get install -qq --yes --no-install-recommends chromium"]


def test_ci_installs_a_browser(checkout: Path) -> None:
    """CI installs a missing browser before the checks, so that no test is skipped."""
    done = run_ci(checkout)
    assert done.returncode == 0, done.stderr
    assert (checkout / "log").read_text().splitlines() == [*INSTALL, *CHECKS]


@pytest.mark.parametrize("browser", ["chromium", "chromium-browser", "google-chrome"])
def test_ci_uses_an_installed_browser(browser: str, checkout: Path) -> None:
    """Each name that the tests look for is accepted."""
    script(checkout / "bin" / browser, "")
    assert run_ci(checkout).returncode == 0
    assert (checkout / "log").read_text().splitlines() == CHECKS


def test_ci_installs_with_sudo(checkout: Path) -> None:
    """A user other than root installs with sudo, which must not prompt."""
    script(checkout / "bin" / "id", "#!/bin/sh\necho 1000\n")
    script(checkout / "bin" / "sudo", '#!/bin/sh\nshift\nexec "$@"\n')
    assert run_ci(checkout).returncode == 0
    assert (checkout / "log").read_text().splitlines() == [*INSTALL, *CHECKS]


def test_ci_fails_without_a_browser(checkout: Path) -> None:
    """If no browser can be installed, the reason and the remedy are printed and nothing else runs."""
    script(checkout / "bin" / "apt-get", "#!/bin/sh\nexit 100\n")
    done = run_ci(checkout)
    assert done.returncode == 1
    assert "need a browser, and `apt-get install chromium` failed. Install Chromium or Chrome" in done.stderr
    assert not (checkout / "log").exists()
