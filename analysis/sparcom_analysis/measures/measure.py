"""What a measure is: one file with a name, an equation, a computation, a drawing and words.

A Dataset of a measure has these variables where they apply, over its own dimensions (category, category_2, layer, …):

    value            the measure itself; its `units` and `long_name` are attributes of the variable
    ci_low, ci_high  confidence interval
    pvalue           of the permutation test, one-sided; pvalue_adjusted: corrected for all tests of the Dataset
    null_mean        mean of the null distribution, or what chance alone gives

`overall_value`, `overall_ci_low`, … are the same over all instructions, without the category axis; `layer_value`, …
have a layer axis more, `instruction_value` one value per instruction. Variables along the dimension `member` list
neurons or experts by id: they go into lists, not into metrics.json. Attributes say what was measured, how, and of which
model (`facts`).
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
    """One measure, as its file defines it in `MEASURE`.

    Attributes:
        name: of its node in the tree, of its files, and of its entry in metrics.json. title: heading in the report.
        equation: "SPARCOM, eq. 10" or "ours". needs: ISN sets, expert counts, or a comparison of two models.
        definition: what is measured, in a sentence or two, for the report and the docs.
        compute: called with the subject and a progress callback or None.
        sentences: what the Dataset says, the most important sentence first. caption: of the figure.
        plot: draws the Dataset into one axes, made if `ax` is None, and returns it; None if there is nothing to draw.
        figure: draws several panels, if one axes is not enough.
        tables: tidy DataFrames by name; without it every variable of the Dataset that shares the dimensions of `value`.
        also_tuned: whether the measure is also computed of the tuned model alone.
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
    """Return the `Measure` of a module: its functions named like fields of `Measure` are these fields, unless given."""
    module = vars(sys.modules[compute.__module__])
    parts = ("sentences", "caption", "plot", "figure", "tables")
    own: dict[str, Any] = {part: module[part] for part in parts if part in module}
    fields = {"name": compute.__name__} | own | others
    return Measure(title=title, equation=equation, needs=needs, definition=definition, compute=compute, **fields)


Variable = tuple[Sequence[str], ArrayLike] | tuple[Sequence[str], ArrayLike, Mapping[str, Any]]


def dataset(
    subject: Subject, variables: Mapping[str, Variable], coords: Mapping[str, Any], **attributes: Any
) -> xr.Dataset:
    """Return a Dataset of these variables with the attributes of `facts` and further ones; None is left out.

    With intervals, `n_resamples` and `confidence_level` of the options are among the attributes.
    """
    drawn = any(name.endswith("ci_low") for name in variables)
    options = subject.options
    level = {"n_resamples": options.n_resamples, "confidence_level": options.confidence_level} if drawn else {}
    held = {name: value for name, value in (facts(subject) | level | attributes).items() if value is not None}
    return xr.Dataset(dict(variables), coords=dict(coords), attrs=held)


def bounds(prefix: str, dims: Sequence[str], interval: Any) -> dict[str, Variable]:
    """Return `ci_low` and `ci_high` of an `Interval`, with a prefix such as "layer_"; nothing for None."""
    if interval is None:
        return {}
    return {f"{prefix}ci_low": (dims, interval.low), f"{prefix}ci_high": (dims, interval.high)}


def means(
    found: GroupMeans, dims: Sequence[str] = (), prefix: str = "", attrs: Mapping[str, Any] | None = None
) -> dict[str, Variable]:
    """Return means by category with intervals (category, *dims), and with `overall_` those over all instructions."""
    return {
        f"{prefix}value": (("category", *dims), found.mean, attrs or {}),
        **bounds(prefix, ("category", *dims), found.interval),
        f"overall_{prefix}value": (dims, found.overall, attrs or {}),
        **bounds(f"overall_{prefix}", dims, found.overall_interval),
    }


def facts(subject: Subject) -> dict[str, Any]:
    """Return the attributes that every Dataset has: models, population, instructions, parameters; None is unknown."""
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
    """Return DataFrames by name, each of all variables with the dimensions of the one that `likes` names."""
    dims = {name: ds[like].dims for name, like in likes.items()}
    return {name: ds[[key for key in ds if ds[key].dims == of]].to_dataframe() for name, of in dims.items()}


def present(ds: xr.Dataset, *names: str) -> bool:
    """Return whether a Dataset has these variables, with a value in each."""
    return all(name in ds and bool(np.isfinite(ds[name]).any()) for name in names)
