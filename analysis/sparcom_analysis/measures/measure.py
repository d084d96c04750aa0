"""Define `Measure`: one file per measure, with name, equation, computation, figure and sentences.

The Dataset of a measure has these variables where they apply, over its own dimensions (category, category_2, layer, …):

    value            the measure; attributes `units` and `long_name`
    ci_low, ci_high  confidence interval
    pvalue           one-sided permutation test; pvalue_adjusted: corrected within a family of tests
    null_mean        mean of the null distribution, or the value under a null model such as uniform routing

`overall_value`, `overall_ci_low`, … cover all instructions and have no category axis. `layer_value`, … have an
additional layer axis; `instruction_value` has one value per instruction. Variables along `member` list neuron or
expert ids; lists/ holds them, metrics.json does not. Attributes record model, population, instructions and parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from sparcom_analysis.compare import ExpertComparison, IsnComparison
from sparcom_analysis.errors import NotComputableError as NotComputableError  # noqa: PLC0414
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.ise import ExpertCounts
from sparcom_analysis.isn import IsnSets
from sparcom_analysis.resampling.means import GroupMeans
from sparcom_data.describe import archive_name

Subject = IsnSets | ExpertCounts | IsnComparison | ExpertComparison
Needs = Literal["isn", "experts", "isn_comparison", "expert_comparison"]
OURS = "ours"
MATCHED = ("only_base", "only_tuned", "different_lengths", "different_categories", "different_tokens")


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure, defined in its file as `MEASURE`.

    Attributes:
        name: name of its tree node, its files, and its entry in metrics.json. title: heading in the report.
        equation: "SPARCOM, eq. 10" or "ours". needs: ISN sets, expert counts, or a comparison of two models.
        definition: one to three sentences for the report and the docs.
        compute: called with the subject and a progress callback or None.
        sentences: findings in words, most important first. caption: caption of the figure.
        plot: draws the Dataset into `ax` (default: new axes) and returns it; None if there is nothing to draw.
        figure: draws several panels, if one axes is not enough.
        tables: tidy DataFrames by name (default: one with all variables that have the dimensions of `value`).
        also_tuned: whether to compute the measure for the tuned model alone as well.
    """

    name: str
    title: str
    equation: str
    needs: Needs
    definition: str
    compute: Callable[[Any, Progress | None], xr.Dataset]
    sentences: Callable[[xr.Dataset], list[str]]
    caption: Callable[[xr.Dataset], str]
    plot: Callable[..., Axes] | None = None
    figure: Callable[[xr.Dataset], Figure] | None = None
    tables: Callable[[xr.Dataset], Mapping[str, Any]] | None = None
    also_tuned: bool = False


def measure(
    compute: Callable[..., xr.Dataset], title: str, equation: str, needs: Needs, definition: str, **others: Any
) -> Measure:
    """Return the `Measure` of a module. Module functions named like fields of `Measure` are their defaults."""
    module = vars(sys.modules[compute.__module__])
    parts = ("sentences", "caption", "plot", "figure", "tables")
    own: dict[str, Any] = {part: module[part] for part in parts if part in module}
    fields = {"name": compute.__name__} | own | others
    return Measure(title=title, equation=equation, needs=needs, definition=definition, compute=compute, **fields)


Variable = tuple[Sequence[str], ArrayLike] | tuple[Sequence[str], ArrayLike, Mapping[str, Any]]


def dataset(
    subject: Subject, variables: Mapping[str, Variable], coords: Mapping[str, Any], **attributes: Any
) -> xr.Dataset:
    """Return a Dataset of these variables with the attributes of `facts` and `attributes`; None values are dropped.

    With intervals, the attributes include `n_resamples` and `confidence_level`.
    """
    drawn = any(name.endswith("ci_low") for name in variables)
    options = subject.options
    level = {"n_resamples": options.n_resamples, "confidence_level": options.confidence_level} if drawn else {}
    held = {name: value for name, value in (facts(subject) | level | attributes).items() if value is not None}
    return xr.Dataset(dict(variables), coords=dict(coords), attrs=held)


def bounds(prefix: str, dims: Sequence[str], interval: Any) -> dict[str, Variable]:
    """Return `ci_low` and `ci_high` of an `Interval`, with a prefix such as "layer_"; empty for None."""
    if interval is None:
        return {}
    return {f"{prefix}ci_low": (dims, interval.low), f"{prefix}ci_high": (dims, interval.high)}


def means(
    found: GroupMeans, dims: Sequence[str] = (), prefix: str = "", attrs: Mapping[str, Any] | None = None
) -> dict[str, Variable]:
    """Return means with intervals: per category (category, *dims), and as `overall_…` over all instructions (*dims)."""
    return {
        f"{prefix}value": (("category", *dims), found.mean, attrs or {}),
        **bounds(prefix, ("category", *dims), found.interval),
        f"overall_{prefix}value": (dims, found.overall, attrs or {}),
        **bounds(f"overall_{prefix}", dims, found.overall_interval),
    }


def facts(subject: Subject) -> dict[str, Any]:
    """Return the attributes common to all Datasets: models, population, instructions, parameters. None: unknown."""
    if isinstance(subject, (IsnComparison, ExpertComparison)):
        matched, tuned = subject.matched, subject.tuned
        return facts(subject.base) | {
            "instructions": len(matched),
            "tuned_model": tuned.model,
            "tuned_archive": archive_name(tuned.archive.path),
            **{name: getattr(matched, name) for name in MATCHED},
        }
    options = subject.options
    found: dict[str, Any] = {
        "model": subject.model,
        "archive": archive_name(subject.archive.path),
        "instructions": len(subject),
        "positions": subject.positions,
        "group_by": list(options.group_by),
        "seed": options.seed,
        "drawn_tokens": subject.token_facts.drawn,
    }
    if isinstance(subject, ExpertCounts):
        return found | {"population": "expert", "population_title": "experts", "top_k": subject.top_k}
    part = subject.population
    own = {"population": part.name, "population_title": part.title, "rule": options.rule, "neurons": part.total}
    return found | own


def frames(ds: xr.Dataset, likes: Mapping[str, str]) -> dict[str, Any]:
    """Return DataFrames by name; each holds all variables with the dimensions of the variable named in `likes`."""
    dims = {name: ds[like].dims for name, like in likes.items()}
    return {name: ds[[key for key in ds if ds[key].dims == of]].to_dataframe() for name, of in dims.items()}


def present(ds: xr.Dataset, *names: str) -> bool:
    """Return whether a Dataset has all these variables, each with at least one finite value."""
    return all(name in ds and bool(np.isfinite(ds[name]).any()) for name in names)
