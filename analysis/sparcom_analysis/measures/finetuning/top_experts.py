"""Overlap of the most used experts before and after fine-tuning (SPARCOM, app. F, table 6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis.compare import ExpertComparison
from sparcom_analysis.frequencies import Progress
from sparcom_analysis.measures.drawing import category_bars
from sparcom_analysis.measures.experts.top_experts import counted_ranks, layer_ranks, rank_coords, table_6
from sparcom_analysis.measures.finetuning.before_after import MODELS, both_models
from sparcom_analysis.measures.measure import Variable, dataset, measure
from sparcom_analysis.measures.text import decimal
from sparcom_analysis.resampling.means import group_means


def finetuning_top_experts(
    comparison: ExpertComparison, progress: Progress | None = None, **changes: Any
) -> xr.Dataset:
    """Return the most used experts of both models, and which of them both models have in common.

    Args:
        comparison: matched instructions of both models; groups are those of the base model.
        **changes: `top_experts`; see `Options`.

    Returns:
        Both models' ranks (model, …) of `counted_ranks` and `layer_ranks`, with `frequency` for `value`.
        Booleans, True if the base model's expert is also among the tuned model's: `kept` (category, paper_rank) for
        pairs of layer and id; `kept_ids` (category, rank) for ids; `layer_kept` (category, layer, rank);
        `overall_layer_kept` (layer, rank).
        Fractions kept: `value`, `overall_value`, `layer_value`, `overall_layer_value`; `kept_count`: sum of `kept`.
        `null_mean`, `layer_null_mean`: expected fractions if k experts are drawn at random.
    """
    comparison = comparison.with_options(**changes)
    base = comparison.sides[0]
    means = [group_means(side.frequencies, side.categories) for side in comparison.sides]
    ranks = (counted_ranks(side) | layer_ranks(side, mean) for side, mean in zip(comparison.sides, means, strict=True))
    ranked = {name.replace("value", "frequency"): held for name, held in both_models(*ranks).items()}
    experts = {name: np.asarray(values) for name, (_, values, *_) in ranked.items()}
    kept = _among(*(experts["paper_layer"] * base.experts + experts["paper_expert"]))
    layers, overall = _among(*experts["expert"]), _among(*experts["overall_expert"])
    about = {"long_name": "fraction of the most used experts that stay", "units": "1"}
    found: dict[str, Variable] = {
        "kept_ids": (("category", "rank"), _among(*experts["id_expert"])),
        "overall_value": ((), kept.mean(), about),
        "kept_count": ("category", kept.sum(axis=-1)),
        "null_mean": ((), kept.shape[-1] / base.counts[0].size),
        "layer_null_mean": ((), layers.shape[-1] / base.experts),
    }
    stays = {"": (("category", "paper_rank"), kept), "layer_": (("category", "layer", "rank"), layers)}
    for prefix, (dims, stay) in (stays | {"overall_layer_": (("layer", "rank"), overall)}).items():
        found |= {f"{prefix}kept": (dims, stay), f"{prefix}value": (dims[:-1], stay.mean(axis=-1), about)}
    coords = {"model": MODELS, **rank_coords(base)}
    return dataset(comparison, ranked | found, coords, measure=MEASURE.name, experts=base.experts)


def _among(experts: NDArray[Any], others: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each of `experts` (…, rank) is among `others` at the same leading indices."""
    found: NDArray[np.bool_] = (experts[..., :, None] == others[..., None, :]).any(axis=-1)
    return found


def sentences(ds: xr.Dataset) -> list[str]:
    k, kept, ids, layers = ds.sizes["paper_rank"], ds["kept"], ds["kept_ids"], ds["layer_kept"]
    stay, stay_ids, stay_layers = (int(one.sum()) for one in (kept, ids, layers))
    null, layer_null = decimal(kept.size * float(ds["null_mean"]), 1), layers.size * float(ds["layer_null_mean"])
    return [
        f"Of the {k} most used experts per category, over all layers, {stay} of {kept.size} are still among the {k} "
        f"most used after fine-tuning (SPARCOM, table 6); a random choice would keep {null}.",
        f"By expert id, with counts summed over layers, {stay_ids} of {ids.size} stay.",
        f"Of the {ds.sizes['rank']} most used experts per layer and category, {stay_layers:,} of {layers.size:,} "
        f"stay; a random choice would keep {decimal(layer_null, 1)}.",
    ]


def caption(ds: xr.Dataset) -> str:
    return (
        f"Fraction of the {ds.sizes['paper_rank']} most used experts of {ds.attrs['model']}, by count over the whole "
        f"model, that are also most used in {ds.attrs['tuned_model']} (SPARCOM, table 6). Dashed: a random choice."
    )


def tables(ds: xr.Dataset) -> dict[str, Any]:
    """Return table 6 of both models, with an asterisk at experts that stay, and tidy tables of both rankings."""
    place = (ds["paper_layer"] * ds.attrs["experts"] + ds["paper_expert"]).transpose("model", ...).values
    marked = ds["paper_count"].copy(data=np.stack([_among(*place), _among(*place[::-1])]))
    return {
        f"{MEASURE.name}_table_6": table_6(ds, marked),
        MEASURE.name: ds[["paper_layer", "paper_expert", "paper_count"]].to_dataframe(),
        f"{MEASURE.name}_by_layer": ds[["expert", "frequency"]].to_dataframe(),
    }


MEASURE = measure(
    finetuning_top_experts,
    "Most used experts before and after fine-tuning",
    "SPARCOM, app. F, table 6",
    "expert_comparison",
    definition="The experts of the whole model that the instructions of a category activate most often, in each "
    "model, and how many of them both models have in common (SPARCOM, table 6). The paper prints ids without layers; "
    "here an expert is a layer and an id. The comparison per layer, by mean frequency, is ours.",
    plot=category_bars,
)
