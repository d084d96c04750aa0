"""How often each neuron is active over the tokens of an instruction: equations 6 and 8.

Counts are kept as exact integers: c_ij = Σ_t [A^t_ij > 0] for the neurons of dense layers and of shared experts,
c_eij = Σ_t [expert e is chosen at t and its neuron i active] for those of routed ones. Frequencies p = c / T are made
of them where a float is wanted; T is all tokens of the instruction, also for experts, not the tokens routed to them.

An archive of masks is counted here, one of counts was counted when it was captured; what follows sees no difference.
T may leave out tokens that are not to count (`RowSpans.kept`): then their rows are in no sum either.
One instruction's counts are held at a time, whatever the number of tokens, beside the blocks read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES, Block, CountBlock, read_blocks, read_count_blocks
from sparcom_analysis.archive.counted_rows import instruction_rows
from sparcom_analysis.archive.populations import Population, PopulationName, choose_population
from sparcom_analysis.archive.routes import check_choices, iterate_expert_counts, require_router
from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.archive.walk import Part, parts
from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.experts import add_expert_bit_counts
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive, open_archive
from sparcom_data.errors import DamagedArchiveError

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


def iterate_counts(
    archive: Archive,
    spans: RowSpans,
    population: Population,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Counts of one instruction after the other, in the order of their rows.

    Yields:
        k, an index into `spans`, and uint32 (layer, expert × 8 × neuron_byte), active rows of each neuron; spare
        columns are 0. The array is used again for the next instruction: copy what is to be kept.
    """
    source = _stored_counts if archive.granularity == "count" else _counted_masks
    return source(archive, spans, population, progress, block_bytes)


def _stored_counts(
    archive: Archive, spans: RowSpans, population: Population, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Counts as the archive holds them."""
    padded = np.zeros((population.layers, population.columns), dtype=np.uint32)
    done, total = 0, int(spans.tokens.sum())
    at = 0
    for block in read_count_blocks(archive, spans.instruction, population.array("count")[0], block_bytes):
        while at < len(spans) and spans.instruction[at] < block.stop:
            yield at, _stored(archive, spans, at, block, population, padded)
            done += int(spans.tokens[at])
            at += 1
        if progress is not None:
            progress(done, total)


def _stored(
    archive: Archive, spans: RowSpans, k: int, block: CountBlock, population: Population, padded: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Counts of instruction k out of the block, padded to whole bytes of masks where the width is none."""
    index = int(spans.instruction[k])
    counts: NDArray[np.uint32] = block.counts[index - block.start]
    if (largest := int(counts.max(initial=0))) > spans.tokens[k]:
        raise DamagedArchiveError(
            f"a count must be at most the {int(spans.tokens[k])} rows of its instruction; one of "
            f"{archive.instructions.id[index]!r} in {archive.path} is {largest}. "
            "Run `sparcom verify`, then extract the archive again"
        )
    if population.neurons % 8 == 0:
        return counts.reshape(padded.shape)
    shape = (population.layers, population.experts, population.neurons)
    padded.reshape(*shape[:2], -1)[:, :, : population.neurons] = counts.reshape(shape)
    return padded


def _counted_masks(
    archive: Archive, spans: RowSpans, population: Population, progress: Progress | None, block_bytes: int
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Counts of the masks, block by block; an instruction may lie in several."""
    counts = np.zeros((population.layers, population.columns), dtype=np.uint32)
    for part in parts(archive, spans, read_blocks(archive, spans, population, block_bytes), progress):
        _add(archive, part.block, part, population, counts)
        if part.last:
            _check_spare_bits(archive, population, counts)
            yield part.k, counts
            counts[:] = 0


def _add(archive: Archive, block: Block, part: Part, population: Population, counts: NDArray[np.uint32]) -> None:
    """Add those rows of an instruction that lie in the block and count."""
    assert block.masks is not None  # noqa: S101  (read_blocks read them)
    masks = part.counted(block.masks[part.rows])
    if block.experts is None:
        add_bit_counts(masks, counts.reshape(-1))
        return
    chosen = block.experts[part.rows]
    check_choices(archive, part, chosen, population.experts, population.layer_ids)
    add_expert_bit_counts(masks, part.counted(chosen), counts)


def _check_spare_bits(archive: Archive, population: Population, counts: NDArray[np.uint32]) -> None:
    apart = counts.reshape(population.layers, population.experts, -1)
    if apart[:, :, population.neurons :].any():
        raise DamagedArchiveError(
            f"bits past neuron {population.neurons - 1} of {population.array('token')[0]} must be 0; some in "
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
    """Return T · p of equations 6 and 8: the tokens of an instruction at which each neuron is active. A neuron of a
    routed expert is active only where the router picks its expert.

    Args:
        archive: an archive of masks or of counts, or its path or address.
        instruction: id, or index in `archive.instructions`.
        options, **changes: see `Options`; those that choose tokens.
        population: `neuron`, `expert_neuron` or `shared_expert_neuron`; None: routed experts if there are any.

    Returns:
        uint32 (layer, neuron), or (layer, expert, neuron) of routed experts.
    """
    counts, _ = _of_one(opened(archive), instruction, Options.of(options, **changes), population)
    return counts


def activation_frequencies(
    archive: Archive | str | Path,
    instruction: str | int,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    **changes: Any,
) -> NDArray[np.float64]:
    """Return p of equations 6 and 8, 0 to 1: `activation_counts` over all T tokens of the instruction that count.

    Returns:
        float64 (layer, neuron), or (layer, expert, neuron) of routed experts.
    """
    counts, tokens = _of_one(opened(archive), instruction, Options.of(options, **changes), population)
    return counts / np.float64(tokens)


def expert_frequencies(
    archive: Archive | str | Path, instruction: str | int, options: Options | None = None, **changes: Any
) -> NDArray[np.float64]:
    """Return f of equation 11 of one instruction: float64 (layer, expert). Arguments as for `activation_counts`."""
    archive = opened(archive)
    moe = require_router(archive)
    spans = instruction_rows(archive, instruction, Options.of(options, **changes))
    _, counts = next(iterate_expert_counts(archive, spans, moe))
    return counts / np.float64(spans.tokens[0])


def opened(archive: Archive | str | Path) -> Archive:
    """Return the archive, opened if it is a path or an address."""
    return archive if isinstance(archive, Archive) else open_archive(archive)


def _of_one(
    archive: Archive, instruction: str | int, options: Options, name: PopulationName | None
) -> tuple[NDArray[np.uint32], int]:
    """Return the counts of one instruction without spare columns, and its T."""
    population = choose_population(archive, name)
    spans = instruction_rows(archive, instruction, options)
    _, counts = next(iterate_counts(archive, spans, population))
    apart = counts.reshape(population.layers, population.experts, -1)[:, :, : population.neurons].copy()
    return apart if population.routed else apart[:, 0], int(spans.tokens[0])
