"""The files that list components by id: components.json with its JSON Schema, and the index lists of `lists/`."""

from __future__ import annotations

from sparcom_analysis.lists.ids import ComponentsFile, component_ids, json_schema, lape_ids, selection_rule
from sparcom_analysis.lists.long_tensors import as_index_lists, index_arrays
from sparcom_analysis.measures.experts import TOP
from sparcom_analysis.results import Results
from sparcom_analysis.schema.metrics import Metrics


def every_list(metrics: Metrics, results: Results) -> dict[str, bytes]:
    """Every list: its path in the folder and its bytes."""
    neurons, layers = results.neurons[0].neurons, results.archive.attributes.model.layers
    groups = [one.found for one in results.groups]
    selected = [one.lape for one in results.neurons if one.lape is not None]
    held = ComponentsFile(
        model=metrics.archive.model,
        archive=metrics.archive.name,
        selection=selection_rule(neurons.selection, neurons.rows, groups[0].share, TOP),
        categories=metrics.categories,
        components=[component_ids(one) for one in groups],
        lape=[lape_ids(one) for one in selected],
    )
    files = {"components.json": held.to_json(), "components.schema.json": json_schema()}
    for one in groups:
        files[f"lists/belonging-{one.component}.npz"] = index_arrays(
            metrics.categories, as_index_lists(one, layers, "belonging")
        )
        files[f"lists/unique-{one.component}.npz"] = index_arrays(metrics.categories, as_index_lists(one, layers))
    for found in selected:
        name = f"lists/lape-{found.population.component}.npz"
        files[name] = index_arrays(metrics.categories, as_index_lists(found, layers))
    return files
