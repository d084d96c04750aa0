"""Counts at how many tokens each expert is chosen, T · f of equation 11, and refuses invalid router choices.

In a complete instruction, an entry without data (65535), an unknown expert, or an expert that a token chose twice in
one layer is damage: counted, it would give a wrong number. Archives of counts hold the sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES, ROUTES, read_route_blocks
from sparcom_analysis.archive.populations import check_array
from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.archive.walk import Part, Progress, parts, stored_counts
from sparcom_analysis.kernels.experts import add_choice_counts, invalid_choice
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, UnsupportedArchiveError
from sparcom_data.schema import NO_EXPERT
from sparcom_data.schema.metadata import MoeInfo


def require_router(archive: Archive) -> MoeInfo:
    """Return the MoE layers of an archive that holds router choices.

    Raises:
        UnsupportedArchiveError: there are none.
        DamagedArchiveError: the attributes and the array disagree.
    """
    held, moe = archive.attributes.capture.components, archive.moe
    if moe is None or "router" not in held:
        raise UnsupportedArchiveError(
            f"expert frequencies need the router choices of an MoE model; {archive.path} holds "
            f"{', '.join(held) or 'nothing'}. Extract from a model with experts"
        )
    check_array(archive, "router/count" if archive.granularity == "count" else ROUTES)
    return moe


def check_choices(
    archive: Archive, part: Part, chosen: NDArray[np.uint16], experts: int, layer_ids: Sequence[int]
) -> None:
    """Check the router choices of a complete instruction: uint16 (row, layer, choice).

    Raises:
        DamagedArchiveError: one is invalid.
    """
    if (place := invalid_choice(chosen, experts)) is None:
        return
    row, layer, choice = place
    expert = int(chosen[row, layer, choice])
    what = "holds no data (65535)" if expert == NO_EXPERT else f"is {expert}"
    if expert < experts:
        what += ", which that token chose there already"
    raise DamagedArchiveError(
        f"each choice of a complete instruction must be another of the experts 0 to {experts - 1}; choice {choice} at "
        f"row {part.start + row}, layer {layer_ids[layer]}, of instruction {archive.instructions.id[part.index]!r} in "
        f"{archive.path} {what}. Run `sparcom verify`, then extract the archive again"
    )


def iterate_expert_counts(
    archive: Archive,
    spans: RowSpans,
    moe: MoeInfo,
    *,
    progress: Progress | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Yield k, an index in `spans`, and T · f, uint32 (moe_layer, expert), by ascending row.

    Raises:
        DamagedArchiveError: a choice is invalid, or counts do not add up.
    """
    if archive.granularity == "count":
        for k, stored in stored_counts(archive, spans, "router/count", progress, block_bytes):
            _check_sums(archive, spans, k, stored, moe.experts_per_token)
            yield k, stored.copy()
        return
    counts = np.zeros((len(moe.layer_ids), moe.experts), dtype=np.uint32)
    for part in parts(archive, spans, read_route_blocks(archive, spans, block_bytes), progress):
        assert part.block.experts is not None  # noqa: S101  (read_route_blocks read them)
        chosen = part.block.experts[part.rows]
        check_choices(archive, part, chosen, moe.experts, moe.layer_ids)
        add_choice_counts(part.counted(chosen), counts)
        if part.last:
            yield part.k, counts
            counts = np.zeros_like(counts)


def _check_sums(archive: Archive, spans: RowSpans, k: int, counts: NDArray[np.uint32], top_k: int) -> None:
    tokens = int(spans.tokens[k])
    if (counts.sum(axis=1, dtype=np.int64) != tokens * top_k).any() or counts.max() > tokens:
        raise DamagedArchiveError(
            f"router/count of {archive.instructions.id[int(spans.instruction[k])]!r} in {archive.path} must add up to "
            f"{top_k} choices at each of its {tokens} rows in every layer; it does not. "
            "Run `sparcom verify`, then extract the archive again"
        )
