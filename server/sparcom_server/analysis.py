"""Analyze the archives of a job with `sparcom analyze`, in a process of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

from sparcom_data.errors import MissingExtraError, SparcomError
from sparcom_data.storage import partial_name
from sparcom_server.archives.store import ArchiveStore
from sparcom_server.database.tables import JobRow

logger = logging.getLogger(__name__)

FOLDER = "analyses"  # in the data folder
REPORT = "report.html"
# Runs a command that ends with its parent, also if that is killed: PR_SET_PDEATHSIG, which execv keeps, and SIGKILL.
_TIED = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() == int(sys.argv[1]):  # otherwise the parent has died already
    os.execv(sys.argv[2], sys.argv[2:])
"""


class AnalysisFailedError(SparcomError):
    """`sparcom analyze` refused the archives; they stay as they are."""


class Analyses:
    """Results of analyses, a folder per job."""

    def __init__(self, data_dir: Path, archives: ArchiveStore) -> None:
        self.folder = (data_dir / FOLDER).absolute()
        self._archives = archives

    @staticmethod
    def require() -> None:
        """Raise MissingExtraError if the analysis cannot run here."""
        if find_spec("matplotlib") is None or find_spec("numba") is None:
            raise MissingExtraError(
                "analysis: must be false on a server without the analysis package; have the operator install "
                "sparcom[analysis], or run `sparcom analyze` on the archives"
            )

    async def run(self, job: JobRow) -> None:
        """Analyze the complete archives of a job.

        Raises:
            AnalysisFailedError: it failed; the reason is what `sparcom analyze` says.
        """
        base, *tuned = [str(self._archives.path(part.archive)) for part in job.parts]
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.folder.glob(f"{job.id}*"):  # by a run that was interrupted
            shutil.rmtree(left, ignore_errors=True)
        output = partial_name(self.path(job.id))  # an interrupted run that still lives has another
        command = [str(Path(sys.executable).with_name("sparcom")), "analyze", base, "--output", str(output)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _TIED, str(os.getpid()), *command),
            *(["--tuned", *tuned] if tuned else []),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | {"NO_COLOR": "1"},
        )
        try:
            said, _ = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        if process.returncode:
            last = said.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
            logger.error("the analysis of extraction %s failed: %s", job.id, said.decode(errors="replace"))
            raise AnalysisFailedError(f"the archives are complete, but their analysis failed: {last[0]}")
        output.rename(self.path(job.id))

    def path(self, job_id: str) -> Path:
        """Return the folder of a job's results."""
        return self.folder / job_id

    def remove(self, job_id: str) -> None:
        """Delete the results of a job. Blocks."""
        shutil.rmtree(self.path(job_id), ignore_errors=True)
