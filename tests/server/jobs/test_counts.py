"""Archives of counts: requested by REST, served over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from sparcom_analysis import analyze
from sparcom_data.archive import open_archive
from sparcom_data.errors import DamagedArchiveError, UnsupportedArchiveError
from sparcom_data.testing import write_random_archive

Start = Callable[..., Any]


@pytest.fixture
def running(start: Start) -> Any:
    """Return a server with one archive of counts, `running.truth`."""
    server = start()
    server.archives.mkdir(parents=True, exist_ok=True)
    server.truth = write_random_archive(server.archives / "counts.zarr", failed=(2,), granularity="count")
    server.zarr = f"{server.url}/v1/archives/counts/zarr"
    return server


def test_zarr_opens_the_address(running: Any) -> None:
    """`zarr.open` of the address gives the written counts."""
    group = zarr.open(running.zarr, mode="r")
    np.testing.assert_array_equal(group["neuron/count"][:], running.truth)


def test_our_reader_opens_the_address(running: Any) -> None:
    """The project's reader gives the same data and errors over HTTP as from disk."""
    remote, local = open_archive(running.zarr), open_archive(running.archives / "counts.zarr")
    assert (remote.granularity, remote.attributes) == ("count", local.attributes)
    np.testing.assert_array_equal(remote.read_counts(0, 10), local.read_counts(0, 10))
    with pytest.raises(UnsupportedArchiveError, match="has 'count'"):
        remote.read_active(0, 1)
    (running.archives / "counts.zarr" / "neuron/count/c.0.0.0").unlink()
    with pytest.raises(DamagedArchiveError, match="neuron/count"):
        open_archive(running.zarr).read_counts(0, 1)


def test_the_analysis_accepts_the_address(running: Any) -> None:
    """The analysis of the address gives the same numbers as that of the folder."""
    remote, local = (
        analyze(source, n_resamples=20, n_permutations=19)
        for source in (running.zarr, running.archives / "counts.zarr")
    )
    for here, there in zip(local.subtree, remote.subtree, strict=True):
        xr.testing.assert_equal(here.dataset, there.dataset)


def test_a_job_for_counts_becomes_an_archive_of_counts(start: Start) -> None:
    """The job and the archive record `options.granularity`; the facts have the usual fields."""
    running = start()
    job = running.post(5, archive="sums", options={"granularity": "count"}).json()
    assert job["options"]["granularity"] == "count"
    ended = running.wait(job["id"])
    assert (ended["state"], ended["progress"]["complete"], ended["progress"]["tokens_done"]) == ("complete", 5, 20)
    archive = open_archive(ended["archive_path"])
    assert archive.granularity == "count"
    assert archive.instructions.token_length.tolist() == [4] * 5
    assert archive.read_counts(0, 5).any()
    facts = running.http.get("/v1/archives/sums").json()
    assert (facts["tokens"], facts["attributes"]["capture"]["granularity"]) == (20, "count")
    assert facts["instructions"]["complete"] == 5


def test_an_unknown_granularity_is_refused(start: Start) -> None:
    """Status 422 names the field and the allowed values; nothing is created."""
    running = start()
    answer = running.post(1, options={"granularity": "sum"})
    assert answer.status_code == 422
    assert any("options.granularity" in problem and "'count'" in problem for problem in answer.json()["problems"])
    assert running.files() == []
