"""Activation frequencies of neurons (SPARCOM, eq. 6 and 8) and expert frequencies (eq. 11) per instruction.

Counts are exact integers: c_ij = Σ_t [A^t_ij > 0] for neurons of dense layers and of shared experts,
c_eij = Σ_t [expert e is in the top k of token t and its neuron i is active] for neurons of routed experts, and c_ej,
the number of tokens with expert e in the top k. Frequencies are c / T. T is the number of all tokens that count, also
for experts.

This module counts masks and top-k experts; an archive of counts holds the sums. An entry without data (65535), an
invalid expert, or a repeated expert in one layer and token raises DamagedArchiveError, because counts would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import (
    DEFAULT_BLOCK_BYTES,
    ROUTES,
    Part,
    Progress,
    parts,
    read_blocks,
    stored_counts,
)
from sparcom_analysis.archive.counted_rows import instruction_rows
from sparcom_analysis.archive.populations import Population, PopulationName, check_array, choose_population
from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.experts import add_expert_bit_counts, add_expert_counts, invalid_expert
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import DamagedArchiveError, UnsupportedArchiveError
from sparcom_data.schema import NO_EXPERT
from sparcom_data.schema.metadata import MoeInfo

__all__ = ["Progress", "activation_counts", "activation_frequencies", "expert_frequencies", "iterate_counts", "opened"]


def iterate_counts(
    archive: Archive,
    spans: RowSpans,
    population: Population,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield the counts of each instruction, by ascending row.

    Yields:
        k, an index in `spans`, and uint32 (layer, expert × 8 × neuron_byte), tokens at which each neuron is active.
        Padding columns are 0. The next instruction overwrites the array; copy it to keep it.
    """
    counts = np.zeros((population.layers, population.columns), dtype=np.uint32)
    apart = counts.reshape(population.layers, population.experts, -1)
    if archive.granularity == "count":
        for k, stored in stored_counts(archive, spans, population.array(archive), progress, block_bytes):
            if (largest := int(stored.max(initial=0))) > spans.tokens[k]:
                raise _damage(
                    f"a count must be at most the {int(spans.tokens[k])} rows of its instruction; one of "
                    f"{archive.instructions.id[int(spans.instruction[k])]!r} in {archive.path} is {largest}"
                )
            apart[:, :, : population.neurons] = stored.reshape(population.layers, population.experts, -1)
            yield k, counts
        return
    for part in parts(archive, spans, read_blocks(archive, spans, population, block_bytes), progress):
        _add_masks(archive, part, population, counts)
        if part.last:
            if apart[:, :, population.neurons :].any():
                raise _damage(
                    f"bits past neuron {population.neurons - 1} of {population.array(archive)} must be 0; some in "
                    f"{archive.path} are set"
                )
            yield part.k, counts
            counts[:] = 0


def _add_masks(archive: Archive, part: Part, population: Population, counts: NDArray[np.uint32]) -> None:
    """Add the rows of the part that count."""
    assert part.block.masks is not None  # noqa: S101  (read_blocks read them)
    masks = part.counted(part.block.masks[part.rows])
    if population.routed:
        chosen = _checked_topk(archive, part, population.experts, population.layer_ids)
        add_expert_bit_counts(masks, part.counted(chosen), counts)
    else:
        add_bit_counts(masks, counts.reshape(-1))


def iterate_expert_counts(
    archive: Archive,
    spans: RowSpans,
    moe: MoeInfo,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield k, an index in `spans`, and T · f, uint32 (moe_layer, expert), by ascending row."""
    if archive.granularity == "count":
        for k, stored in stored_counts(archive, spans, "router/count", progress, block_bytes):
            tokens, top_k = int(spans.tokens[k]), moe.experts_per_token
            if (stored.sum(axis=1, dtype=np.int64) != tokens * top_k).any() or stored.max() > tokens:
                raise _damage(
                    f"router/count of {archive.instructions.id[int(spans.instruction[k])]!r} in {archive.path} must "
                    f"sum to {top_k} experts for each of its {tokens} rows in every layer; it does not"
                )
            yield k, stored
        return
    counts = np.zeros((len(moe.layer_ids), moe.experts), dtype=np.uint32)
    for part in parts(archive, spans, read_blocks(archive, spans, None, block_bytes), progress):
        chosen = _checked_topk(archive, part, moe.experts, moe.layer_ids)
        add_expert_counts(part.counted(chosen), counts)
        if part.last:
            yield part.k, counts
            counts = np.zeros_like(counts)


def require_router(archive: Archive) -> MoeInfo:
    """Return the MoE facts of an archive; it must hold top-k experts."""
    held, moe = archive.attributes.capture.components, archive.moe
    if moe is None or "router" not in held:
        raise UnsupportedArchiveError(
            f"expert frequencies need the top-k experts of an MoE model; {archive.path} holds "
            f"{', '.join(held) or 'nothing'}. Extract from a model with experts"
        )
    check_array(archive, "router/count" if archive.granularity == "count" else ROUTES)
    return moe


def _checked_topk(archive: Archive, part: Part, experts: int, layer_ids: Sequence[int]) -> NDArray[np.uint16]:
    """Return the checked top-k experts of a part of a complete instruction: uint16 (row, layer, choice)."""
    assert part.block.experts is not None  # noqa: S101  (read_blocks read them)
    chosen = part.block.experts[part.rows]
    if (place := invalid_expert(chosen, experts)) is None:
        return chosen
    row, layer, choice = place
    expert = int(chosen[place])
    what = "holds no data (65535)" if expert == NO_EXPERT else f"is {expert}"
    if expert < experts:
        what += ", a repeated expert"
    raise _damage(
        f"the top-k experts of a token must be distinct and in 0 to {experts - 1}; entry {choice} at row "
        f"{part.start + row}, layer {layer_ids[layer]}, of instruction {archive.instructions.id[part.index]!r} in "
        f"{archive.path} {what}"
    )


def _damage(rule: str) -> DamagedArchiveError:
    return DamagedArchiveError(f"{rule}. Run `sparcom verify`, then extract the archive again")


def activation_counts(
    archive: Archive | str | Path,
    instruction: str | int,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    **changes: Any,
) -> NDArray[np.uint32]:
    """Return c = T · p of one instruction: tokens at which each neuron is active (SPARCOM, eq. 6 and 8).

    A neuron of a routed expert can be active only at tokens with the expert in the top k.

    Args:
        archive: an archive of masks or of counts, or its path or URL.
        instruction: an id such as "cls-s-0001", or an index in `archive.instructions`.
        options, **changes: see `Options`; only options that select tokens matter.
        population: `neuron`, `expert_neuron` or `shared_expert_neuron` (default: routed experts if there are any).

    Returns:
        uint32 (layer, neuron), or (layer, expert, neuron) for routed experts.

    Raises:
        InvalidInputError: there is no such instruction, option or population.
        IncompleteArchiveError: the instruction is not complete, or has no tokens that count.
    """
    archive, options = opened(archive), Options.of(options, **changes)
    chosen = choose_population(archive, population)
    _, counts = next(iterate_counts(archive, instruction_rows(archive, instruction, options), chosen))
    apart = counts.reshape(chosen.layers, chosen.experts, -1)[:, :, : chosen.neurons].copy()
    return apart if chosen.routed else apart[:, 0]


def activation_frequencies(
    archive: Archive | str | Path,
    instruction: str | int,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    **changes: Any,
) -> NDArray[np.float64]:
    """Return p of one instruction, 0 to 1: `activation_counts` divided by its T tokens that count (eq. 6 and 8).

    Arguments and errors are those of `activation_counts`.

    Returns:
        float64 (layer, neuron), or (layer, expert, neuron) for routed experts.
    """
    archive, options = opened(archive), Options.of(options, **changes)
    counts = activation_counts(archive, instruction, options, population=population)
    return counts / np.float64(instruction_rows(archive, instruction, options).tokens[0])


def expert_frequencies(
    archive: Archive | str | Path, instruction: str | int, options: Options | None = None, **changes: Any
) -> NDArray[np.float64]:
    """Return f of one instruction (SPARCOM, eq. 11): float64 (layer, expert). Arguments as in `activation_counts`."""
    archive = opened(archive)
    moe = require_router(archive)
    spans = instruction_rows(archive, instruction, Options.of(options, **changes))
    _, counts = next(iterate_expert_counts(archive, spans, moe))
    return counts / np.float64(spans.tokens[0])


def opened(archive: Archive | str | Path) -> Archive:
    """Return the archive; open it if it is a path or URL."""
    return archive if isinstance(archive, Archive) else open_archive(archive)
