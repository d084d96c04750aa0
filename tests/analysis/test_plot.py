"""`sp.plot`: one plot per measure, several models side by side, and files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import sparcom_analysis as sp
from sparcom_analysis import plotting
from sparcom_analysis.measures.neurons.similarity import MEASURE
from sparcom_data.errors import InvalidInputError

LABELS = ["CLS", "SUM", "CODE"]


def matrix(low: float, model: str = "M") -> xr.Dataset:
    """Return a Dataset as `similarity` gives it, with values from `low` to `low + 0.1`."""
    values = np.linspace(low, low + 0.1, 9).reshape(3, 3)
    return xr.Dataset(
        {
            "value": (("self_pairs", "category", "category_2"), np.stack([values, values - 0.02]), {"long_name": "J"}),
            "pvalue_adjusted": (("category", "category_2"), np.where(np.eye(3), 0.01, 0.5)),
        },
        coords={"self_pairs": [True, False], "category": LABELS, "category_2": LABELS},
        attrs={"model": model, "self_pairs_shown": True, "measure": "similarity"},
    )


def layered(scale: float, layers: int = 5, names: list[str] = LABELS) -> xr.Dataset:
    """Return a Dataset of category by layer."""
    values = scale * np.ones((len(names), layers))
    coords = {"category": names, "layer": range(layers)}
    return xr.Dataset({"value": (("category", "layer"), values)}, coords=coords, attrs={"measure": "by_layer"})


def plot_layers(ds: xr.Dataset, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw curves as a measure does."""
    return plotting.curves(ds.layer.values, ds["value"].values, ds.category.values, ax=ax, label="n", **style)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two measures: a matrix and curves."""
    monkeypatch.setattr(sp.plot, "REGISTRY", (MEASURE, replace(MEASURE, name="by_layer", plot=plot_layers)))


def meshes(figure: Figure) -> list[Any]:
    """Return the heat maps of a figure, without color bars."""
    return [ax.collections[0] for ax in figure.axes if ax.get_aspect() == 1.0]


def test_each_measure_has_its_plot() -> None:
    """A plot has the measure's name and takes `ax` and a style; the error for another name lists all."""
    ax = Figure().add_subplot()
    assert sp.plot.similarity(matrix(0.4), ax=ax, vmin=0.3, vmax=0.7, annot=True, title="here") is ax
    assert ax.collections[0].get_clim() == (0.3, 0.7)
    assert ax.get_title() == "here"
    assert {"similarity", "by_layer", "panels", "save"} <= set(dir(sp.plot))
    with pytest.raises(AttributeError, match="no plot 'similarities'; choose one of similarity, by_layer"):
        _ = sp.plot.similarities


def test_panels_share_colors_and_one_color_bar() -> None:
    """Models side by side have one range, one color bar and one column of names, at two columns' width."""
    figure = sp.plot.panels([matrix(0.3, "A"), matrix(0.5, "B"), matrix(0.4, "C")], ["first", "second", "third"])
    assert [mesh.get_clim() for mesh in meshes(figure)] == [pytest.approx((0.3, 0.6))] * 3
    assert [mesh.colorbar is not None for mesh in meshes(figure)] == [False, False, True]
    assert [ax.get_title() for ax in figure.axes] == ["first", "second", "third"]
    assert [ax.yaxis.get_tick_params()["labelleft"] for ax in figure.axes] == [True, False, False]
    assert figure.get_size_inches()[0] == pytest.approx(7.0)


def test_panels_need_not_share() -> None:
    """If nothing is shared, each panel keeps its own range and color bar."""
    figure = sp.plot.panels([matrix(0.3), matrix(0.5)], share=False)
    assert [mesh.get_clim() for mesh in meshes(figure)] == [pytest.approx((0.3, 0.4)), pytest.approx((0.5, 0.6))]
    assert all(mesh.colorbar is not None for mesh in meshes(figure))


def test_rows_of_panels_share_values_and_a_legend() -> None:
    """As in figure 5, tuned is above base, with one y range, one legend, and layer labels only at the bottom."""
    figure = sp.plot.panels([[layered(1), layered(4)], [layered(2), layered(3)]])
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert figure.axes[0].get_ylim()[1] >= 4
    assert all(ax.get_legend() is None for ax in figure.axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == LABELS
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "layer", "layer"]
    assert [ax.get_ylabel() for ax in figure.axes] == ["n", "", "n", ""]


def test_a_panel_can_be_empty() -> None:
    """None leaves a panel empty; ranges and labels follow a panel's column."""
    figure = sp.plot.panels([[None, layered(4)], [layered(2), layered(3)]], [["", "B"], ["A", "C"]], share="columns")
    assert [ax.get_title() for ax in figure.axes] == ["B", "A", "C"]
    assert figure.axes[0].get_ylim() == figure.axes[2].get_ylim() != figure.axes[1].get_ylim()
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "layer", "layer"]


def test_columns_of_panels_can_share_values() -> None:
    """Models of different sizes have a range and ticks per column."""
    figure = sp.plot.panels([[layered(1), layered(400)], [layered(2), layered(300)]], share="columns")
    tops = [round(ax.get_ylim()[1]) for ax in figure.axes]
    assert tops[0] == tops[2] == 2
    assert tops[1] == tops[3] >= 400
    assert all(ax.yaxis.get_tick_params()["labelleft"] for ax in figure.axes)


def test_legends_with_different_names_stay() -> None:
    """If a color means another category in each panel, each panel keeps its legend."""
    figure = sp.plot.panels([layered(1), layered(1, names=["CLS", "CODE"])])
    assert [len(ax.get_legend().get_texts()) for ax in figure.axes] == [3, 2]  # type: ignore[union-attr]
    assert not figure.legends


def test_panels_know_their_measure() -> None:
    """The measure comes from the attribute or a name; without either, or without Datasets, the error names the
    remedy.
    """
    ds = matrix(0.4)
    del ds.attrs["measure"]
    with pytest.raises(InvalidInputError, match="pass measure=NAME, one of similarity, by_layer"):
        sp.plot.panels([ds])
    assert len(sp.plot.panels([ds], measure="similarity").axes) == 1
    with pytest.raises(InvalidInputError, match="at least one Dataset"):
        sp.plot.panels([])


@pytest.mark.parametrize(("kind", "begin"), [("pdf", b"%PDF"), ("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_figures_are_saved_by_suffix(tmp_path: Path, kind: str, begin: bytes) -> None:
    """A figure and its axes give the same file."""
    ax = sp.plot.similarity(matrix(0.4))
    for name, drawn in (("a", ax), ("b", ax.get_figure())):
        sp.plot.save(drawn, tmp_path / f"{name}.{kind}")  # type: ignore[arg-type]
    first, second = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
    assert first == second
    assert first.startswith(begin)
    assert ax.get_figure().get_layout_engine() is not None  # type: ignore[union-attr]


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    """The error names the valid suffixes."""
    with pytest.raises(InvalidInputError, match="must be one of pdf, svg, png"):
        sp.plot.save(sp.plot.similarity(matrix(0.4)), tmp_path / "a.jpg")
