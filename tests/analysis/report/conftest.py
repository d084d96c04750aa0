"""Runs of tiny archives, analyzed once, and sample measures of every form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis import analyze, plotting, write_report
from sparcom_analysis.measures import REGISTRY
from sparcom_analysis.measures.measure import Measure, NotComputableError
from sparcom_data.testing import write_random_archive, write_random_moe_archive

FEW: dict[str, Any] = {"n_resamples": 20, "n_permutations": 20, "seed": 3, "top": 0.2}
SIMILARITY = next(measure for measure in REGISTRY if measure.name == "similarity")
NAMES = ("a|<b>", "$x_&")


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of a dense pair and a pair of MoE models; one instruction of the tuned ones failed."""
    folder, found = tmp_path_factory.mktemp("archives"), {}
    for kind, write in {"dense": write_random_archive, "moe": write_random_moe_archive}.items():
        for which, seed, failed in (("base", 0, ()), ("tuned", 1, (3,))):
            found[f"{kind}-{which}"] = folder / f"{kind}-{which}.zarr"
            write(found[f"{kind}-{which}"], seed=seed, failed=failed, lengths=(6, 14), per_category=3, categories=NAMES)
    return found


def by_layer(_subject: object, _progress: object = None) -> xr.Dataset:
    """A sample measure: a curve per category, members by id, a missing value, and every kind of variable."""
    values = np.array([[0.25, np.nan, 0.125], [0.5, 0.75, 1.0]])
    return xr.Dataset(
        {
            "value": (("category", "layer"), values, {"long_name": "made-up value", "units": "1"}),
            "counted": ("category", np.array([3, 2])),
            "kept": ("category", [True, False]),
            "words": ("category", ["x", "y\u2028"]),
            "member_layer": ("member", np.array([1, 2, 3], dtype=np.int32)),
        },
        {"category": list(NAMES), "layer": [1, 2, 5]},
        {"model": "random", "instructions": 6, "empty": []},
    )


def means(subject: Any, _progress: object = None) -> xr.Dataset:
    """A sample mean per category with intervals."""
    ends = {f"{prefix}ci_{end}": value for prefix in ("", "overall_") for end, value in (("low", 0.4), ("high", 0.6))}
    return xr.Dataset(
        {"value": ("category", [0.5, 0.55]), "overall_value": ((), 0.525)}
        | {name: ((), value) if name.startswith("o") else ("category", [value] * 2) for name, value in ends.items()},
        {"category": list(NAMES)},
        {"model": subject.base.model, "confidence_level": 0.95},
    )


def never(_subject: object, _progress: object = None) -> xr.Dataset:
    """Return no result."""
    raise NotComputableError("Such a thing needs <other> data.")


def draw(ds: xr.Dataset, ax: Any = None, **style: Any) -> Any:
    """Draw curves."""
    return plotting.curves(ds["layer"].values, ds["value"].values, list(NAMES), ax=ax, label="made up", **style)


def sample_measure(name: str, compute: Any, **changes: Any) -> Measure:
    """Return a measure with this computation."""
    return dataclasses.replace(
        SIMILARITY,
        name=name,
        title=f"Made-up {name}",
        equation="ours",
        definition=f"What {name} is.",
        compute=compute,
        sentences=lambda ds: [f"{name} is {float(ds['value'].values.flat[0]):.3f}.", "It is < 2 & made up."],
        caption=lambda _ds: f"Caption of {name} & more.",
        **{"plot": None, "also_tuned": False} | changes,
    )


MADE_UP = (
    sample_measure("curves", by_layer, plot=draw, also_tuned=True),
    sample_measure("finetuning_jaccard", means, needs="isn_comparison"),
    sample_measure("impossible", never),
)


@pytest.fixture(scope="session")
def runs(archives: dict[str, Path]) -> dict[str, xr.DataTree]:
    """Both pairs, analyzed with similarity and the sample measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch_registry(patch)
        return {kind: analyze(archives[f"{kind}-base"], archives[f"{kind}-tuned"], **FEW) for kind in ("dense", "moe")}


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of similarity and the sample measures only."""
    patch_registry(monkeypatch)


def patch_registry(patch: pytest.MonkeyPatch) -> None:
    """Replace the registry wherever it is used."""
    for module in ("report.run", "report.export", "report.page", "report.write", "plot"):
        patch.setattr(f"sparcom_analysis.{module}.REGISTRY", (SIMILARITY, *MADE_UP))


def draw_nothing(_figure: object, kind: str) -> bytes:
    """Return the header of a drawing in its place, because rendering takes most of the time."""
    return b"%PDF" if kind == "pdf" else b'<svg xmlns="http://www.w3.org/2000/svg" width="240pt"></svg>'


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered."""
    monkeypatch.setattr("sparcom_analysis.plotting.render", draw_nothing)


@pytest.fixture(scope="session")
def folder(runs: dict[str, xr.DataTree], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the MoE pair; figures are not rendered."""
    with pytest.MonkeyPatch.context() as patch:
        patch_registry(patch)
        patch.setattr("sparcom_analysis.plotting.render", draw_nothing)
        return write_report(runs["moe"], tmp_path_factory.mktemp("report")).parent


@pytest.fixture
def make_measure() -> Any:
    """Return `sample_measure`."""
    return sample_measure


@pytest.fixture
def curves() -> xr.Dataset:
    """Return `by_layer`."""
    return by_layer(None)
