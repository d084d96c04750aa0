"""How often each neuron is active over the tokens of an instruction (SPARCOM, eq. 6 and 8).

Counts are exact integers: c_ij = Σ_t [A^t_ij > 0] for neurons of dense layers and of shared experts,
c_eij = Σ_t [token t chooses expert e and its neuron i is active] for those of routed experts. Frequencies are
p = c / T. T is all tokens of the instruction that count, for experts too, not only the tokens routed to them.

Masks are counted here; an archive of counts holds the counts. The counts of one instruction are in memory at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES, read_blocks
from sparcom_analysis.archive.counted_rows import instruction_rows
from sparcom_analysis.archive.populations import Population, PopulationName, choose_population
from sparcom_analysis.archive.routes import check_choices, iterate_expert_counts, require_router
from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.archive.walk import Part, Progress, parts, stored_counts
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.experts import add_expert_bit_counts
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import DamagedArchiveError

__all__ = ["Progress", "activation_counts", "activation_frequencies", "expert_frequencies", "iterate_counts", "opened"]


def iterate_counts(
    archive: Archive,
    spans: RowSpans,
    population: Population,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield the counts of one instruction after the other, by ascending row.

    Yields:
        k, an index in `spans`, and uint32 (layer, expert × 8 × neuron_byte), tokens at which each neuron is active;
        spare columns are 0. The array is overwritten for the next instruction: copy it to keep it.
    """
    counts = np.zeros((population.layers, population.columns), dtype=np.uint32)
    apart = counts.reshape(population.layers, population.experts, -1)
    if archive.granularity == "count":
        for k, stored in stored_counts(archive, spans, population.array(archive), progress, block_bytes):
            _check_stored(archive, spans, k, stored)
            apart[:, :, : population.neurons] = stored.reshape(population.layers, population.experts, -1)
            yield k, counts
        return
    for part in parts(archive, spans, read_blocks(archive, spans, population, block_bytes), progress):
        _add_masks(archive, part, population, counts)
        if part.last:
            _check_spare_bits(archive, population, apart)
            yield part.k, counts
            counts[:] = 0


def _check_stored(archive: Archive, spans: RowSpans, k: int, counts: NDArray[np.uint32]) -> None:
    if (largest := int(counts.max(initial=0))) > spans.tokens[k]:
        raise DamagedArchiveError(
            f"a count must be at most the {int(spans.tokens[k])} rows of its instruction; one of "
            f"{archive.instructions.id[int(spans.instruction[k])]!r} in {archive.path} is {largest}. "
            "Run `sparcom verify`, then extract the archive again"
        )


def _add_masks(archive: Archive, part: Part, population: Population, counts: NDArray[np.uint32]) -> None:
    """Add those rows of the part that count."""
    assert part.block.masks is not None  # noqa: S101  (read_blocks read them)
    masks = part.counted(part.block.masks[part.rows])
    if part.block.experts is None:
        add_bit_counts(masks, counts.reshape(-1))
        return
    chosen = part.block.experts[part.rows]
    check_choices(archive, part, chosen, population.experts, population.layer_ids)
    add_expert_bit_counts(masks, part.counted(chosen), counts)


def _check_spare_bits(archive: Archive, population: Population, apart: NDArray[np.uint32]) -> None:
    if apart[:, :, population.neurons :].any():
        raise DamagedArchiveError(
            f"bits past neuron {population.neurons - 1} of {population.array(archive)} must be 0; some in "
            f"{archive.path} are set. Run `sparcom verify`, then extract the archive again"
        )


def activation_counts(
    archive: Archive | str | Path,
    instruction: str | int,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    **changes: Any,
) -> NDArray[np.uint32]:
    """Return c = T · p of one instruction: tokens at which each neuron is active (SPARCOM, eq. 6 and 8).

    A neuron of a routed expert is active only at tokens that choose the expert.

    Args:
        archive: an archive of masks or of counts, or its path or address.
        instruction: an id such as "cls-s-0001", or an index in `archive.instructions`.
        options, **changes: see `Options`; only those that choose tokens matter.
        population: `neuron`, `expert_neuron` or `shared_expert_neuron`; None: routed experts if there are any.

    Returns:
        uint32 (layer, neuron), or (layer, expert, neuron) of routed experts.

    Raises:
        InvalidInputError: there is no such instruction, option or population.
        IncompleteArchiveError: the instruction is not complete, or has no tokens that count.
    """
    return _counts_and_tokens(archive, instruction, Options.of(options, **changes), population)[0]


def activation_frequencies(
    archive: Archive | str | Path,
    instruction: str | int,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    **changes: Any,
) -> NDArray[np.float64]:
    """Return p of one instruction, 0 to 1: `activation_counts` over its T tokens that count (SPARCOM, eq. 6 and 8).

    Arguments and errors are those of `activation_counts`.

    Returns:
        float64 (layer, neuron), or (layer, expert, neuron) of routed experts.
    """
    counts, tokens = _counts_and_tokens(archive, instruction, Options.of(options, **changes), population)
    return counts / np.float64(tokens)


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
    """Return the archive; open it if it is a path or an address."""
    return archive if isinstance(archive, Archive) else open_archive(archive)


def _counts_and_tokens(
    source: Archive | str | Path, instruction: str | int, options: Options, name: PopulationName | None
) -> tuple[NDArray[np.uint32], int]:
    """Return the counts of one instruction without spare columns, and its T."""
    archive = opened(source)
    population = choose_population(archive, name)
    spans = instruction_rows(archive, instruction, options)
    _, counts = next(iterate_counts(archive, spans, population))
    apart = counts.reshape(population.layers, population.experts, -1)[:, :, : population.neurons].copy()
    return apart if population.routed else apart[:, 0], int(spans.tokens[0])
