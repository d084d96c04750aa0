"""How often each neuron is active over the tokens of an instruction: equations 6 and 8.

Counts are kept as exact integers: c_ij = Σ_t [A^t_ij > 0] for the neurons of dense layers and of shared experts,
c_eij = Σ_t [expert e is chosen at t and its neuron i active] for those of routed ones. Frequencies p = c / T are made
of them where a float is wanted; T is all tokens of the instruction, also for experts, not the tokens routed to them.

An archive of masks is counted here, one of counts was counted when it was captured; what follows sees no difference.
T may leave out tokens that are not to count (`RowSpans.kept`): then their rows are in no sum either.
One instruction's counts are held at a time, whatever the number of tokens, beside the blocks read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.kernels.bit_counts import add_bit_counts
from sparcom_analysis.kernels.experts import add_expert_bit_counts
from sparcom_analysis.reading.blocks import DEFAULT_BLOCK_BYTES, Block, CountBlock, read_blocks, read_count_blocks
from sparcom_analysis.reading.populations import Component, Population, choose_population
from sparcom_analysis.reading.routes import check_choices
from sparcom_analysis.reading.rows import CountedTokens, Rows, RowSpans, SpecialTokens, choose_rows, row_spans
from sparcom_analysis.reading.token_rows import kept_rows
from sparcom_analysis.reading.walk import Part, parts
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, IncompleteArchiveError

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


def without_spare(counts: NDArray[np.uint32], population: Population) -> NDArray[np.uint32]:
    """A copy of counts as `iterate_counts` gives them, without spare columns: (layer, neuron), or (layer, expert,
    neuron) of routed experts."""
    apart = counts.reshape(population.layers, population.experts, -1)[:, :, : population.neurons].copy()
    return apart if population.routed else apart[:, 0]


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


def span_of(
    archive: Archive,
    index: int,
    rows: Rows | None,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
) -> RowSpans:
    """The rows of one instruction, which must be complete and have some that count."""
    chosen = choose_rows(archive, rows)
    spans = row_spans(archive, chosen)
    spans = spans.only(spans.instruction == index)
    if len(spans):
        spans = kept_rows(archive, spans, special_tokens, special_token_ids, counted_tokens)
    if not len(spans):
        raise IncompleteArchiveError(
            f"activation frequencies need a complete instruction with {chosen} rows; instruction {index} of "
            f"{archive.path} ({len(archive.instructions)} instructions) is none. See archive.instructions.complete"
        )
    return spans


def activation_counts(
    archive: Archive,
    index: int,
    rows: Rows | None = None,
    component: Component | None = None,
    *,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
) -> NDArray[np.uint32]:
    """T · p of equations 6 and 8: at how many of its tokens each neuron is active, of a routed expert's at how many the
    expert is chosen and the neuron active.

    Args:
        archive: an archive of masks or of counts.
        index: of the instruction in `archive.instructions`.
        rows: prompt, response or all; without it the prompt's where the archive holds them. Of counts only what was
            captured can be had.
        component: whose neurons; without it those of routed experts where the model has them, else of dense layers.
        special_tokens, special_token_ids, counted_tokens: see `instruction_specific_neurons`.

    Returns:
        uint32 (layer, neuron); of routed experts (layer, expert, neuron).
    """
    population = choose_population(archive, component)
    spans = span_of(archive, index, rows, special_tokens, special_token_ids, counted_tokens)
    _, counts = next(iterate_counts(archive, spans, population))
    return without_spare(counts, population)


def activation_frequencies(
    archive: Archive,
    index: int,
    rows: Rows | None = None,
    component: Component | None = None,
    *,
    special_tokens: SpecialTokens = "count",
    special_token_ids: Sequence[int] | None = None,
    counted_tokens: CountedTokens = "all",
) -> NDArray[np.float64]:
    """p of equations 6 and 8: the share of all its T tokens at which each neuron is active (and, of routed experts, its
    expert chosen); see `activation_counts`.

    Returns:
        float64 (layer, neuron) or (layer, expert, neuron), 0 to 1.
    """
    population = choose_population(archive, component)
    spans = span_of(archive, index, rows, special_tokens, special_token_ids, counted_tokens)
    _, counts = next(iterate_counts(archive, spans, population))
    return without_spare(counts, population) / np.float64(int(spans.tokens[0]))
