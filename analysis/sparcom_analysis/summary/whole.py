"""Puts results and facts of the archive together into `Metrics`; computes nothing but sums and means of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np

from sparcom_analysis.components.general_unique import Components
from sparcom_analysis.measures.experts import TOP
from sparcom_analysis.measures.selection import InstructionNeurons
from sparcom_analysis.options import Options
from sparcom_analysis.reading.categories import category_codes, category_labels
from sparcom_analysis.results import NeuronResult, Results
from sparcom_analysis.schema import metrics as schema
from sparcom_analysis.schema.chance import ChanceTests
from sparcom_analysis.schema.experts import MoeFacts
from sparcom_analysis.statistics.bootstrap import mean_intervals
from sparcom_analysis.summary.alteration import Intervals, isn_alteration_part, isn_venn_part
from sparcom_analysis.summary.chance import chance_tests, matrix_tests, resampling_facts, with_interval
from sparcom_analysis.summary.components import general_unique_part, lape_part
from sparcom_analysis.summary.experts import expert_parts
from sparcom_analysis.summary.length import length_part
from sparcom_analysis.summary.numbers import nulls
from sparcom_analysis.summary.twin import Archives
from sparcom_analysis.summary.warnings import prompt_origins, warning_sentences
from sparcom_data.archive import Archive, describe_states


def summarise(results: Results, options: Options) -> schema.Metrics:
    """Everything that metrics.json holds; of the neurons the first are those that the archive is about."""
    archive, neurons = results.archive, results.neurons[0].neurons
    twin = results.twin_resamples
    intervals: Intervals | None = None if twin is None else lambda values: mean_intervals(values, twin)
    archives = None if results.tuned is None else (archive, results.tuned)
    parts = [_component(result, archives, options, intervals) for result in results.neurons]
    moe = archive.attributes.model.moe is not None
    return schema.Metrics(
        archive=_archive_facts(archive),
        settings=_settings(neurons, options),
        versions=schema.Versions(**{name: version(name) for name in schema.Versions.model_fields}),
        instructions=_instruction_facts(archive, neurons),
        categories=category_labels(neurons.categories),
        **{name: getattr(parts[0], name) for name in schema.COMPONENT_PARTS},
        **_further(results),
        warnings=warning_sentences(results),
        not_computed=[schema.NotComputed(field=field, reason=why) for field, why in results.skipped.items()],
        component=parts[0].component if moe else None,
        components=parts if moe else None,
        **({} if results.experts is None else expert_parts(results.experts, archives, intervals)),
    )


def _settings(neurons: InstructionNeurons, options: Options) -> schema.Settings:
    return schema.Settings(
        rows=neurons.rows,
        selection="threshold" if neurons.selection.epsilon is None else "epsilon",
        epsilon=neurons.selection.epsilon,
        threshold=neurons.selection.threshold,
        exclude_self_pairs=options.exclude_self_pairs,
        special_tokens=neurons.token_facts.special_tokens,
        counted_tokens=neurons.token_facts.counted_tokens,
    )


def _further(results: Results) -> dict[str, Any]:
    """The parts over all components: general and unique ones, LAPE, length, chance."""
    found: dict[str, Components] = {one.neurons.population.component: one.groups.found for one in results.neurons}
    selected = [one.lape for one in results.neurons if one.lape is not None]
    return {
        "general_unique": general_unique_part(results.groups, TOP),
        "lape": lape_part(selected, found) if selected else None,
        "length_matched": None if results.control is None else length_part(results.control),
        "tests": _tests(results),
        "intervals": None if results.resamples is None else resampling_facts(results.resamples),
    }


def _tests(results: Results) -> ChanceTests | None:
    """Every matrix's tests; None where none were made."""
    matrices = [
        matrix_tests(one.tests, "isn_similarity", one.neurons.population.component)
        for one in results.neurons
        if one.tests is not None
    ]
    first = results.neurons[0].tests
    if first is None:
        return None
    if results.experts is not None and results.experts.tests is not None:
        matrices.append(matrix_tests(results.experts.tests, "ise_correlation"))
    return chance_tests(first, matrices)


def _component(
    result: NeuronResult, archives: Archives | None, options: Options, intervals: Intervals | None
) -> schema.ComponentMetrics:
    labels, part = list(result.similarity.categories), result.neurons.population
    similarity = schema.CategoryMatrix(categories=labels, matrix=nulls(result.similarity.matrix))
    without_self = schema.CategoryMatrix(categories=labels, matrix=nulls(result.similarity.without_self))
    by_layer = schema.LayerMeans(
        categories=list(result.by_layer.categories),
        layer_ids=list(result.by_layer.layer_ids),
        mean_count=result.by_layer.mean_count.tolist(),
    )
    if result.intervals is not None:
        similarity = with_interval(similarity, result.intervals.with_self)
        without_self = with_interval(without_self, result.intervals.without_self)
    if result.layer_intervals is not None:
        by_layer = with_interval(by_layer, result.layer_intervals.by_category, of="mean_count")
    altered, venn = None, None
    if result.altered is not None and archives is not None:
        altered = isn_alteration_part(result.altered, archives, intervals)
        venn = isn_venn_part(result.altered, archives, options.instructions)
    return schema.ComponentMetrics(
        component=part.component,
        experts=part.experts,
        neurons=part.neurons,
        isn_size=_set_sizes(result.neurons),
        isn_similarity=similarity,
        isn_similarity_without_self=without_self,
        isn_by_layer=by_layer,
        isn_alteration=altered,
        isn_venn=venn,
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
            unknown_origin=neurons.token_facts.unknown_origin,
        ),
        special_token_ids=list(neurons.token_facts.special_ids),
        special_rows=neurons.token_facts.special_rows,
        template_rows=neurons.token_facts.template_rows,
        origins=prompt_origins(archive, neurons.instruction),
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
