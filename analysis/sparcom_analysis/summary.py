"""Puts results and facts of the archive together into `Metrics`; computes nothing but sums and means of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis import schema
from sparcom_analysis.categories import category_codes, category_labels
from sparcom_analysis.layers import LayerCounts
from sparcom_analysis.selection import InstructionNeurons
from sparcom_analysis.similarity import CategorySimilarity
from sparcom_data.archive import Archive, describe_states


def summarise(
    archive: Archive,
    neurons: InstructionNeurons,
    similarity: CategorySimilarity,
    by_layer: LayerCounts,
    *,
    exclude_self_pairs: bool,
) -> schema.Metrics:
    """Everything that metrics.json holds."""
    labels = list(similarity.categories)
    return schema.Metrics(
        archive=_archive_facts(archive),
        settings=schema.Settings(
            rows=neurons.rows,
            selection="threshold" if neurons.selection.epsilon is None else "epsilon",
            epsilon=neurons.selection.epsilon,
            threshold=neurons.selection.threshold,
            exclude_self_pairs=exclude_self_pairs,
        ),
        versions=schema.Versions(**{name: version(name) for name in schema.Versions.model_fields}),
        instructions=_instruction_facts(archive, neurons),
        isn_size=_set_sizes(neurons),
        isn_similarity=schema.CategoryMatrix(categories=labels, matrix=_rows(similarity.matrix)),
        isn_similarity_without_self=schema.CategoryMatrix(categories=labels, matrix=_rows(similarity.without_self)),
        isn_by_layer=schema.LayerMeans(
            categories=list(by_layer.categories),
            layer_ids=list(by_layer.layer_ids),
            mean_count=by_layer.mean_count.tolist(),
        ),
    )


def _rows(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    """The matrix as lists, NaN as None."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in matrix]


def _archive_facts(archive: Archive) -> schema.ArchiveFacts:
    attributes = archive.attributes
    model, capture = attributes.model, attributes.capture
    return schema.ArchiveFacts(
        name=PurePath(archive.path).name,
        format_version=attributes.format_version,
        created=attributes.created,
        state=attributes.state,
        model=model.id,
        model_name=PurePath(model.id).name,
        revision=model.revision,
        architecture=model.architecture,
        dtype=model.dtype,
        quantization=model.quantization,
        activation=model.activation,
        layers=len(model.layer_ids),
        neurons=archive.neurons,
        predicate=capture.predicate,
        granularity=capture.granularity,
        positions=capture.positions,
        prompt_format=capture.prompt_format,
        dataset=attributes.dataset.name,
        dataset_sha256=attributes.dataset.sha256,
        vllm=attributes.engine.vllm,
    )


def _instruction_facts(archive: Archive, neurons: InstructionNeurons) -> schema.InstructionFacts:
    table = archive.instructions
    states = describe_states(table.state)
    return schema.InstructionFacts(
        total=len(table),
        used=len(neurons),
        tokens=int(neurons.tokens.sum()),
        left_out=schema.LeftOut(
            pending=states["pending"],
            failed=states["failed"],
            cancelled=states["cancelled"],
            without_rows=neurons.without_rows,
        ),
        by_category=_category_facts(table.category, neurons),
    )


def _category_facts(categories: Sequence[str], neurons: InstructionNeurons) -> list[schema.CategoryFacts]:
    """One entry a category of the archive, those without a usable instruction included."""
    labels, codes = category_labels(categories), category_codes(categories)
    used = np.bincount(codes[neurons.instruction], minlength=len(labels))
    total = np.bincount(codes, minlength=len(labels))
    tokens, sizes = np.zeros_like(total), np.zeros_like(total)
    np.add.at(tokens, codes[neurons.instruction], neurons.tokens)
    np.add.at(sizes, codes[neurons.instruction], neurons.sizes)
    return [
        schema.CategoryFacts(
            category=label,
            instructions=int(used[code]),
            left_out=int(total[code] - used[code]),
            tokens=int(tokens[code]),
            mean_tokens=float(tokens[code] / used[code]) if used[code] else None,
            mean_isn=float(sizes[code] / used[code]) if used[code] else None,
        )
        for code, label in enumerate(labels)
    ]


def _set_sizes(neurons: InstructionNeurons) -> schema.SetSizes:
    sizes = neurons.sizes
    return schema.SetSizes(
        wanted=neurons.selection.wanted(neurons.neurons * len(neurons.layer_ids)),
        mean=float(sizes.mean()),
        minimum=int(sizes.min()),
        maximum=int(sizes.max()),
        empty=int((sizes == 0).sum()),
    )
