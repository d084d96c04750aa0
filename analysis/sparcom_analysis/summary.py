"""Puts results and facts of the archive together into `Metrics`; computes nothing but sums and means of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePath

import numpy as np

from sparcom_analysis import schema
from sparcom_analysis.categories import category_codes, category_labels
from sparcom_analysis.expert_schema import MoeFacts
from sparcom_analysis.expert_summary import ExpertResult, expert_parts, nullable
from sparcom_analysis.layers import LayerCounts
from sparcom_analysis.selection import InstructionNeurons
from sparcom_analysis.similarity import CategorySimilarity
from sparcom_data.archive import Archive, describe_states


@dataclass(frozen=True, slots=True)
class ComponentResult:
    """The measures of one population."""

    neurons: InstructionNeurons
    similarity: CategorySimilarity
    by_layer: LayerCounts


def summarise(
    archive: Archive,
    results: Sequence[ComponentResult],
    experts: ExpertResult | None,
    *,
    exclude_self_pairs: bool,
) -> schema.Metrics:
    """Everything that metrics.json holds; of the results the first is the one that the archive is about."""
    neurons = results[0].neurons
    parts = [_component(result) for result in results]
    shown = {name: getattr(parts[0], name) for name in _SHOWN}
    moe = archive.attributes.model.moe is not None
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
        **shown,
        component=parts[0].component if moe else None,
        components=parts if moe else None,
        **({} if experts is None else expert_parts(experts)),
    )


_SHOWN = ("isn_size", "isn_similarity", "isn_similarity_without_self", "isn_by_layer")


def _component(result: ComponentResult) -> schema.ComponentMetrics:
    labels, part = list(result.similarity.categories), result.neurons.population
    return schema.ComponentMetrics(
        component=part.component,
        experts=part.experts,
        neurons=part.neurons,
        isn_size=_set_sizes(result.neurons),
        isn_similarity=schema.CategoryMatrix(categories=labels, matrix=nullable(result.similarity.matrix)),
        isn_similarity_without_self=schema.CategoryMatrix(
            categories=labels, matrix=nullable(result.similarity.without_self)
        ),
        isn_by_layer=schema.LayerMeans(
            categories=list(result.by_layer.categories),
            layer_ids=list(result.by_layer.layer_ids),
            mean_count=result.by_layer.mean_count.tolist(),
        ),
    )


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
        moe=None if model.moe is None else MoeFacts(**model.moe.model_dump()),
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
        wanted=neurons.selection.wanted(neurons.population.total),
        mean=float(sizes.mean()),
        minimum=int(sizes.min()),
        maximum=int(sizes.max()),
        empty=int((sizes == 0).sum()),
    )
