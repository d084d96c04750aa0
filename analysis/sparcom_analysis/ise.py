"""Expert frequencies (SPARCOM, eq. 11) and instruction-specific experts (ISEs).

f_ej(I) = c_ej(I) / T. The integer c is the number of tokens of instruction I at which expert e of layer j is among the
top k; T is the number of all its tokens. f sums to k over a layer. The paper calls every activated expert an ISE
(c ≥ 1, section 3.1). "Most used experts", the most frequent experts of a layer, are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES
from sparcom_analysis.archive.counted_rows import TokenDraw, counted_rows
from sparcom_analysis.frequencies import Progress, iterate_expert_counts, opened, require_router
from sparcom_analysis.instructions import PerInstruction, shared_fields
from sparcom_analysis.kernels.correlations import correlation_blocks
from sparcom_analysis.kernels.intersections import Blocks
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ExpertCounts(PerInstruction):
    """Expert counts of n instructions; `counts["cls-s-0001"]` returns the frequencies of one.

    Attributes:
        counts: uint32 (n, layer, expert), T · f.
        layer_ids: layer numbers of the MoE layers.
        top_k: experts per token and layer.
    """

    counts: NDArray[np.uint32]
    layer_ids: Sequence[int]
    top_k: int

    @property
    def experts(self) -> int:
        """Experts per layer."""
        return int(self.counts.shape[2])

    @property
    def frequencies(self) -> NDArray[np.float64]:
        """f of equation 11: float64 (n, layer, expert), 0 to 1."""
        return self.counts / self.tokens[:, None, None].astype(np.float64)

    def pair_blocks(self) -> Blocks:
        """Yield the Pearson correlation of each pair of instructions, equation 13; NaN if one is constant."""
        return correlation_blocks(self.counts, self.tokens)

    @property
    def activated(self) -> NDArray[np.bool_]:
        """ISEs of the paper: bool (n, layer, expert), True if any token activates the expert."""
        return self.counts > 0

    def most_used(self, k: int | None = None) -> NDArray[np.bool_]:
        """Return the k most used experts per layer, with all ties (ours): bool (n, layer, expert)."""
        rank = self.experts - min(self.options.top_experts if k is None else k, self.experts)
        least = np.maximum(np.partition(self.counts, rank, axis=2)[:, :, rank : rank + 1], 1)
        return self.counts >= least

    def __getitem__(self, instruction: str) -> xr.DataArray:
        """Return f of one instruction, by its id: float64 DataArray (layer, expert)."""
        place = self.place(instruction)
        coords = {"layer": list(self.layer_ids), "instruction": instruction, "category": self.names[place]}
        values = self.counts[place] / np.float64(self.tokens[place])
        return xr.DataArray(values, dims=("layer", "expert"), coords=coords, name="frequency")

    def to_dataframe(self) -> Any:
        """Return one row per instruction, layer and expert: number of tokens assigned to it, and the frequency."""
        dims = ("instruction", "layer", "expert")
        held = xr.Dataset(
            {"count": (dims, self.counts), "frequency": (dims, self.frequencies)},
            coords={"instruction": list(self.ids), "layer": list(self.layer_ids)},
        )
        return held.to_dataframe()

    def _summary(self) -> Iterator[str]:
        yield from super()._summary()
        yield f"{self.experts} experts, {self.top_k} per token, in {len(self.layer_ids)} layers"
        if len(self):
            yield f"{self.activated.sum(axis=(1, 2)).mean():,.0f} activated experts (ISEs) per instruction"


def find_ises(
    archive: Archive | str | Path,
    options: Options | None = None,
    *,
    draw: TokenDraw | None = None,
    least: int = 1,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    **changes: Any,
) -> ExpertCounts:
    """Count the tokens per expert of each complete instruction, in one pass over the top-k experts.

    Arguments and further errors are those of `find_isns`.

    Raises:
        UnsupportedArchiveError: the archive holds no top-k experts.
        DamagedArchiveError: a row of a complete instruction lacks its experts.
    """
    archive, options = opened(archive), Options.of(options, **changes)
    moe = require_router(archive)
    spans = counted_rows(archive, options, draw, least)
    counts = np.zeros((len(spans), len(moe.layer_ids), moe.experts), dtype=np.uint32)
    for k, counted in iterate_expert_counts(archive, spans, moe, progress=progress, block_bytes=block_bytes):
        counts[k] = counted
    return ExpertCounts(
        **shared_fields(archive, spans, options),
        counts=counts,
        layer_ids=list(moe.layer_ids),
        top_k=moe.experts_per_token,
    )
