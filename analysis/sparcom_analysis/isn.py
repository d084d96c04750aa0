"""Instruction-specific neurons (ISNs): the neurons that an instruction activates most often (SPARCOM, eq. 7 and 9).

One of two rules selects them by exact counts c = T · p, without rounding:

- `top`: the k = ⌈top · N⌉ most frequent of all N neurons of the population, and all ties with the last;
- `min_frequency`: every neuron with p ≥ min_frequency, equation 7 verbatim.

A population is ranked over all its layers: neurons of dense layers (eq. 7), of routed experts (eq. 9), or of shared
experts. A neuron that is never active (p = 0) is in no set.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.archive.counted_rows import TokenDraw, counted_rows
from sparcom_analysis.archive.populations import Population, PopulationName, choose_population
from sparcom_analysis.frequencies import Progress, iterate_counts, opened
from sparcom_analysis.instructions import PerInstruction, shared_fields
from sparcom_analysis.kernels.bitsets import Bitsets
from sparcom_analysis.kernels.compiled import histogram, pack_at_least
from sparcom_analysis.kernels.intersections import Blocks, jaccard_blocks
from sparcom_analysis.options import Options, exact
from sparcom_analysis.pooled import PooledCounts, pool_for
from sparcom_data.archive import Archive


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class IsnSets(PerInstruction):
    """The ISN sets of n instructions; `isn["cls-s-0001"]` is one as a labeled mask.

    Attributes:
        population: population of the neurons.
        minimum_count: int64 (n,), smallest count in the set, or the count required for membership if it is empty.
        sets: n bitsets; each has bytes (layer, expert, neuron_byte), padded with zeros.
        layer_counts: int64 (n, layer), ISNs per layer.
        dead_layers: bool (n, layer), True if no neuron of the layer is active at any token that counts.
        pooled: counts summed per group, for LAPE; None if not kept.
        pooled_reason: reason if they were not kept.
    """

    population: Population
    minimum_count: NDArray[np.int64]
    sets: Bitsets
    layer_counts: NDArray[np.int64]
    dead_layers: NDArray[np.bool_]
    pooled: PooledCounts | None = None
    pooled_reason: str = ""

    @property
    def layer_ids(self) -> Sequence[int]:
        """Layer numbers of the model."""
        return self.population.layer_ids

    @property
    def sizes(self) -> NDArray[np.int64]:
        """ISNs per instruction: int64 (n,)."""
        sizes: NDArray[np.int64] = self.layer_counts.sum(axis=1)
        return sizes

    def pair_blocks(self) -> Blocks:
        """Yield the Jaccard index of each pair of instructions, as in equation 10; NaN for two empty sets."""
        return jaccard_blocks(self.sets, self.sizes)

    def mask(self, place: int) -> NDArray[np.bool_]:
        """Return the set of the instruction at an index: bool (layer, neuron), or (layer, expert, neuron)."""
        part = self.population
        shape = (part.layers, part.experts, part.neuron_bytes)
        packed = self.sets.rows(place, place + 1)[0].view(np.uint8)[: math.prod(shape)].reshape(shape)
        mask = np.unpackbits(packed, axis=2, count=part.neurons, bitorder="little").astype(np.bool_)
        return mask if part.routed else mask[:, 0]

    def __getitem__(self, instruction: str) -> xr.DataArray:
        """Return the set of one instruction, by its id: bool DataArray (layer, neuron), or (layer, expert, neuron)."""
        place, part = self.place(instruction), self.population
        dims = ("layer", "expert", "neuron") if part.routed else ("layer", "neuron")
        coords = {"layer": list(part.layer_ids), "instruction": instruction, "category": self.names[place]}
        return xr.DataArray(self.mask(place), dims=dims, coords=coords, name="isn")

    def by_layer(self) -> xr.DataArray:
        """Return ISNs per instruction and layer: int64 DataArray (instruction, layer)."""
        coords = {"instruction": list(self.ids), "layer": list(self.layer_ids), "category": ("instruction", self.names)}
        return xr.DataArray(self.layer_counts, dims=("instruction", "layer"), coords=coords, name="isn_count")

    def to_dataframe(self) -> Any:
        """Return one row per instruction: category, source, tokens, ISNs, and their smallest count and p."""
        least = np.where(self.sizes > 0, self.minimum_count, np.nan)
        columns = {"category": self.names, "source": list(self.sources), "tokens": self.tokens, "isn_count": self.sizes}
        columns |= {"minimum_count": least, "minimum_frequency": least / self.tokens}
        held = {name: ("instruction", values) for name, values in columns.items()}
        return xr.Dataset(held, coords={"instruction": list(self.ids)}).to_dataframe()

    def _replaced(self, **changes: Any) -> Self:
        """Return a copy with other instructions or groups, without pooled counts."""
        return replace(self, pooled=None, pooled_reason="", **changes)

    def _summary(self) -> Iterator[str]:
        yield from super()._summary()
        wanted, sizes = self.options.wanted(self.population.total), self.sizes
        count = "" if wanted is None else f"{wanted:,} of "
        size = f", mean size {sizes.mean():,.0f} ({sizes.min():,} to {sizes.max():,}, with ties)" if len(self) else ""
        yield f"{self.options.rule}: {count}{self.population.total:,} neurons of {self.population.title}{size}"


def find_isns(
    archive: Archive | str | Path,
    options: Options | None = None,
    *,
    population: PopulationName | None = None,
    draw: TokenDraw | None = None,
    pool: bool = False,
    least: int = 1,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    scratch: Path | None = None,
    **changes: Any,
) -> IsnSets:
    """Select the ISNs of every complete instruction in one pass over the archive (SPARCOM, eq. 7 and 9).

    Args:
        archive: an archive of masks or of counts, or its path or URL.
        options, **changes: `top` or `min_frequency`, and options for tokens and groups; see `Options`.
        population: `neuron`, `expert_neuron` or `shared_expert_neuron` (default: routed experts if there are any).
        draw: number of tokens to draw per instruction; masks only.
        pool: also sum the counts per group, for LAPE (default: False).
        least: minimum number of instructions (default: 1).
        progress: called with rows done and rows in total.
        block_bytes: packed masks or counts read at once; affects memory and speed only.
        scratch: folder for a temporary file if the sets are too large for memory.

    Raises:
        IncompleteArchiveError: too few complete instructions, or positions that the archive does not hold.
        UnsupportedArchiveError: the archive lacks the population, or data about the tokens to leave out.
        DamagedArchiveError: rows of a complete instruction are invalid.
    """
    archive, options = opened(archive), Options.of(options, **changes)
    chosen = choose_population(archive, population)
    spans = counted_rows(archive, options, draw, least)
    shared = shared_fields(archive, spans, options)
    pooled, reason = pool_for(chosen, shared["categories"], spans.tokens) if pool else (None, "")
    words = np.zeros(-(-chosen.layers * chosen.columns // 64), dtype=np.uint64)
    packed = words.view(np.uint8)[: chosen.layers * chosen.columns // 8].reshape(chosen.layers, -1)
    isn = IsnSets(
        **shared,
        population=chosen,
        minimum_count=np.zeros(len(spans), dtype=np.int64),
        sets=Bitsets(len(spans), len(words), scratch),
        layer_counts=np.zeros((len(spans), chosen.layers), dtype=np.int64),
        dead_layers=np.zeros((len(spans), chosen.layers), dtype=np.bool_),
        pooled=pooled,
        pooled_reason=reason,
    )
    for k, counts in iterate_counts(archive, spans, chosen, progress=progress, block_bytes=block_bytes):
        occurrences = histogram(counts.reshape(-1), int(spans.tokens[k]))
        bound = minimum_count(options, occurrences, chosen.total)
        pack_at_least(counts, bound, packed, isn.layer_counts[k])
        isn.sets[k], isn.minimum_count[k] = words, bound
        without_isn = np.flatnonzero(isn.layer_counts[k] == 0)  # a layer with an ISN is not dead
        isn.dead_layers[k, without_isn] = ~counts[without_isn].any(axis=1)
        if pooled is not None:
            pooled.add(k, counts)
    return isn


def minimum_count(options: Options, occurrences: NDArray[np.int64], neurons: int) -> int:
    """Return the smallest count in the set, at least 1, or the count required for membership if the set is empty.

    Args:
        occurrences: int64 (T + 1,), frequency of each count; padding entries count as 0.
        neurons: N of the population.
    """
    wanted = options.wanted(neurons)
    if wanted is None:
        assert options.min_frequency is not None  # noqa: S101  (Options has one of the two)
        bound = math.ceil(exact(options.min_frequency) * (len(occurrences) - 1))
    else:
        at_least = occurrences[::-1].cumsum()[::-1]  # entry c: neurons with count ≥ c
        bound = max(1, int(np.flatnonzero(at_least >= wanted)[-1]))
    held = np.flatnonzero(occurrences[bound:])
    return bound + int(held[0]) if len(held) else bound
