"""The demo's comparison page and table: numbers and sentences of both reports side by side, in one file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sparcom_analysis import analyze, read_metrics, write_report
from sparcom_cli.demo.comparison import View, within_and_between, write_comparison
from sparcom_data.errors import InvalidInputError
from sparcom_data.testing import write_random_archive, write_random_moe_archive


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a demo folder with both reports, whose figures are empty SVGs. Tests do not change it."""
    folder = tmp_path_factory.mktemp("demo")
    for seed, ending in enumerate(("", "-tuned")):
        write_random_archive(folder / f"d{ending}.zarr", seed=seed)
        write_random_moe_archive(folder / f"m{ending}.zarr", experts=9, dense_layers=0, seed=seed)
    for name, report in (("d", "report"), ("m", "report-moe")):
        report_of(folder / report, folder / f"{name}.zarr", folder / f"{name}-tuned.zarr")
    return folder


def report_of(folder: Path, base: Path, tuned: Path | None, n: int = 20) -> Path:
    """Write a report of an archive and its fine-tuned model, without figures; return its folder."""
    few: dict[str, Any] = {"top": 0.2, "n_resamples": n, "n_permutations": n, "equal_length": False}
    run = analyze(base, tuned, **few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparcom_analysis.plotting.render", lambda _figure, _kind: b"<svg/>")
        return write_report(run, folder).parent


def page_of(folder: Path, *reports: Path, tuned_here: bool = True) -> str:
    """Write the page into `folder`; return its text."""
    return write_comparison(folder, *reports, tuned_here=tuned_here)[0].read_text("utf-8")


def views(output: Path) -> list[View]:
    """Return the views of the dense model and of the MoE model's neuron populations."""
    dense, moe = (read_metrics(output / name) for name in ("report", "report-moe"))
    groups = ["", *(f"{part['population']}/" for part in moe.attrs["populations"][1:])]
    return [View("", dense, output), *(View("", moe, output, group) for group in groups)]


def test_within_and_between_are_means_over_categories() -> None:
    """The page gives the means on and off the diagonal, without missing pairs, and their ratio."""

    def matrix(*rows: list[float]) -> xr.Dataset:
        cells = ("self_pairs", "category", "category_2")
        return xr.Dataset({"value": (cells, [np.ones((len(rows),) * 2), rows])}, {"self_pairs": [True, False]})

    missing = float("nan")
    within, between, ratio = within_and_between(matrix([0.5, 0.2, missing], [0.2, 0.7, 0.4], [missing, 0.4, missing]))
    assert (within, between) == (pytest.approx(0.6), pytest.approx(0.3))
    assert ratio == pytest.approx(2.0)
    assert np.isnan(within_and_between(matrix([missing]))[2])
    assert np.isnan(within_and_between(matrix([0.5, -0.1], [-0.1, 0.5]))[2]), "a ratio needs a denominator above 0"


def test_the_page_has_what_both_reports_have(output: Path) -> None:
    """It shows facts of all models, figures of every population, routing, and the tables' numbers. It links to every
    section of both reports."""
    page = page_of(output, output / "report", output / "report-moe")
    for title in ("Dense model", "MoE model: routed experts", "MoE model: shared experts"):
        assert page.count(f"<h3>{title}</h3>") == (2 if "Dense" in title else 1), "similarity, and in short"
        assert page.count(f"<h4>{title}</h4>") == (1 if "shared" in title else 2), "layers, and single instructions"
    assert page.count("data:image/svg+xml;base64,") == 11
    for view in views(output):
        tuning = view.measure("finetuning_jaccard")
        for number in (view.measure("set_sizes")["overall_value"], tuning["overall_tuned_isn"]):
            assert f'<td class="num">{number.item():,.1f}</td>' in page
        within = within_and_between(view.measure("similarity"))[0]
        for value in (within, *tuning["value"].values, tuning["overall_value"].item()):
            assert f'<td class="num">{value:.3f}</td>' in page
    moe = read_metrics(output / "report-moe").attrs["archive"]["moe"]
    passed = moe["shared_neurons"] + moe["experts_per_token"] * moe["neurons"]
    assert f"In the MoE model, it goes through {passed}" in re.sub(r"\s+", " ", page)
    for folder in ("report", "report-moe"):
        report = (output / folder / "report.html").read_text("utf-8")
        anchors = set(re.findall(r'id="(measure-[a-z_]+)"', report))
        assert len(anchors) >= 8
        assert set(re.findall(rf'href="{folder}/report\.html#([a-z_-]+)"', page)) == anchors


def test_similarities_are_named_correctly(output: Path) -> None:
    """Equations 15 and 16 are similarities; a Jaccard index is not called a share."""
    text = re.sub(r"data:[^\"]+", "", page_of(output, output / "report", output / "report-moe"))
    assert "the Jaccard index of its two ISN sets (SPARCOM, eq. 15), 1 if they are equal" in text
    assert not re.search(r"alter|share of|1 minus", text)


def test_kept_experts_are_marked(output: Path) -> None:
    """The base's most used experts are in order; an asterisk marks those that are among the tuned model's too."""
    page = page_of(output, output / "report", output / "report-moe")
    ds = read_metrics(output / "report-moe")["finetuning_top_experts"]
    kept = ds["layer_kept"].values
    tops = ds["expert"].sel(model="base").values
    for experts, marks in zip(tops.reshape(-1, tops.shape[-1]), kept.reshape(-1, kept.shape[-1]), strict=True):
        cell = ", ".join(f"{expert}{'*' if mark else ''}" for expert, mark in zip(experts, marks, strict=True))
        assert f"<td>{cell}</td>" in page
    assert 0 < kept.sum() < kept.size


def test_the_terminal_shows_similarity_by_category(output: Path) -> None:
    """One line per neuron population and one for the experts, with the numbers of tables 1 and 2."""
    _, table = write_comparison(output, output / "report", output / "report-moe", tuned_here=True)
    head, names, *lines = table.splitlines()
    assert head.startswith("similarity before and after fine-tuning (neurons: mean Jaccard index")
    assert names.split() == ["CLS", "CODE", "all"]
    parts = [view.measure("finetuning_jaccard") for view in views(output)]
    parts.append(read_metrics(output / "report-moe")["finetuning_correlation"].to_dataset())
    for line, part in zip(lines, parts, strict=True):
        expected = [f"{value:.3f}" for value in (*part["value"].values, part["overall_value"].item())]
        assert line.split()[-3:] == expected
    assert {len(line) for line in (names, *lines)} == {len(names)}


def test_a_report_without_a_tuned_model_is_refused(output: Path, tmp_path: Path) -> None:
    """The page compares pairs; a report of a single model is refused."""
    report_of(tmp_path / "alone", output / "d.zarr", None, 0)
    with pytest.raises(InvalidInputError, match="run `sparcom analyze --tuned` for both"):
        page_of(tmp_path, tmp_path / "alone", output / "report-moe")


def test_the_page_loads_nothing(output: Path, tmp_path: Path) -> None:
    """Its only addresses are those of the two reports."""
    page = page_of(tmp_path, output / "report", output / "report-moe")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|report)""", page)
    assert "http" not in page
    assert "<script" not in page


def test_training_is_described_only_if_known(output: Path, tmp_path: Path) -> None:
    """The page describes the tuning only if the demo made the models."""
    pages = [page_of(tmp_path, output / "report", output / "report-moe", tuned_here=here) for here in (True, False)]
    for words in ("were trained on other instructions of the same set", "The tuning is short."):
        assert [words in page for page in pages] == [True, False]


def test_names_are_text(output: Path, tmp_path: Path) -> None:
    """Names of models and categories are never markup."""
    for name in ("report", "report-moe"):
        shutil.copytree(output / name, tmp_path / name)
        path = tmp_path / name / "metrics.json"
        raw = json.loads(path.read_text("utf-8"))
        raw["attributes"]["archive"]["model_name"] = "<b>odd</b>"
        path.write_text(json.dumps(raw))
    page = page_of(tmp_path, tmp_path / "report", tmp_path / "report-moe", tuned_here=True)
    assert "&lt;b&gt;odd&lt;/b&gt;" in page
    assert "<b>odd" not in page


def test_an_moe_model_without_shared_experts_has_no_column_for_them(output: Path, tmp_path: Path) -> None:
    """The model has only routed experts, like Mixtral."""
    for seed, ending in enumerate(("", "-tuned")):
        write_random_moe_archive(tmp_path / f"m{ending}.zarr", shared_neurons=0, dense_layers=0, seed=seed)
    report_of(tmp_path / "report-moe", tmp_path / "m.zarr", tmp_path / "m-tuned.zarr")
    page = page_of(tmp_path, output / "report", tmp_path / "report-moe", tuned_here=True)
    assert "of a shared expert" not in page
    assert "<h3>MoE model: shared experts</h3>" not in page
