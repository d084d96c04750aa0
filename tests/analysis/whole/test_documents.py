"""docs/metrics.md describes all of metrics.json, the command and the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import xarray as xr

import sparcom_analysis
from sparcom_analysis import Options, analyze
from sparcom_analysis.measures import REGISTRY
from sparcom_cli.analyze import analyze as command
from sparcom_data.testing import write_random_moe_archive

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
ROW = re.compile(r"^\| ((?:`\w+`(?:, )?)+) \| ([\w, –]+) \| (.+) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def text() -> str:
    """The document."""
    return DOCUMENT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> xr.DataTree:
    """Every measure of small archives: two categories, two sources, an MoE model and its tuned version."""
    folder = tmp_path_factory.mktemp("documents")
    for seed, name in enumerate("ab"):
        shape = {"per_category": 4, "lengths": (9, 12), "sources": ["x", "y"]}
        write_random_moe_archive(folder / f"{name}.zarr", seed=seed, **shape)
    return analyze(folder / "a.zarr", folder / "b.zarr", n_resamples=4, n_permutations=4)


def section(text: str, name: str) -> str:
    """The part of the document about a measure."""
    found = re.search(rf"^### `{name}`: .*?(?=^##)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/metrics.md has no section about {name}"
    return found[0]


@pytest.mark.parametrize("measure", REGISTRY, ids=lambda measure: measure.name)
def test_every_measure_is_described(measure: object, text: str, run: xr.DataTree) -> None:
    """A section has the measure's title, definition and equation, and each variable with its dimensions."""
    name, title = measure.name, measure.title  # type: ignore[attr-defined]
    about = section(text, name)
    assert about.startswith(f"### `{name}`: {title}\n")
    assert f"{measure.definition} *{measure.equation}*" in about  # type: ignore[attr-defined]
    described = {
        variable: tuple(dims.split(", ")) if dims != "–" else ()
        for names, dims, _ in ROW.findall(about)
        for variable in re.findall(r"`(\w+)`", names)
    }
    assert described == {str(key): held.dims for key, held in run[name].data_vars.items()}


def test_no_measure_is_described_that_does_not_exist(text: str) -> None:
    """Every section is about a measure of the registry, in its order."""
    assert re.findall(r"^### `(\w+)`", text, re.MULTILINE) == [measure.name for measure in REGISTRY]


def test_every_option_is_described(text: str) -> None:
    """Each option of `sparcom analyze` stands in the document, and each field of `Options` in a docstring or here."""
    for parameter in command.params:
        for option in (*parameter.opts, *parameter.secondary_opts):
            assert f"`{option}" in text or option == "archives", option
    assert all(name in (Options.__doc__ or "") for name in Options.__dataclass_fields__)


def test_attributes_are_described(text: str, run: xr.DataTree) -> None:
    """The document names the attributes of the root and those of a comparison of two models."""
    for name in (*run.attrs, *run["finetuning_jaccard"].attrs):
        assert f"`{name}`" in text or name in ("format_version", "neurons"), name


def test_every_public_name_exists_and_is_described(text: str) -> None:
    """Every name in `__all__` exists and is documented, here or in docs/python.md."""
    text += DOCUMENT.with_name("python.md").read_text(encoding="utf-8")
    for name in sparcom_analysis.__all__:
        assert hasattr(sparcom_analysis, name)
        assert f"`{name}" in text, name
