"""At how many tokens of an instruction each expert is chosen, T · f of equation 11; and what no router can have chosen.

An entry without data (65535), an expert that the model does not have, or one that a token chose twice in a layer is
damage where the instruction is complete: counted, it would be a wrong number. Archives of counts hold the sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.archive.blocks import DEFAULT_BLOCK_BYTES, ROUTES, read_count_blocks, read_route_blocks
from sparcom_analysis.archive.populations import check_array
from sparcom_analysis.archive.rows import RowSpans
from sparcom_analysis.archive.walk import Part, parts
from sparcom_analysis.kernels.experts import add_choice_counts, invalid_choice
from sparcom_data.archive import Archive
from sparcom_data.errors import DamagedArchiveError, UnsupportedArchiveError
from sparcom_data.schema.metadata import MoeInfo

NO_EXPERT = 65_535  # fill value of router/expert


def require_router(archive: Archive) -> MoeInfo:
    """The mixture-of-experts layers of an archive whose router choices were captured.

    Raises:
        UnsupportedArchiveError: there are none.
        DamagedArchiveError: the attributes and the array disagree.
    """
    held, moe = archive.attributes.capture.components, archive.attributes.model.moe
    if moe is None or "router" not in held:
        raise UnsupportedArchiveError(
            f"expert frequencies need the router's choices of a mixture-of-experts model; {archive.path} holds "
            f"{', '.join(held) or 'nothing'}. Extract from a model with experts"
        )
    if archive.granularity == "count":
        check_array(archive, "router/count", (len(moe.layer_ids), moe.experts))
    else:
        check_array(archive, ROUTES, (len(moe.layer_ids), moe.experts_per_token))
    return moe


def check_choices(
    archive: Archive, part: Part, chosen: NDArray[np.uint16], experts: int, layer_ids: Sequence[int]
) -> None:
    """Raise DamagedArchiveError where rows of a complete instruction, uint16 (row, layer, choice), hold no choice."""
    found = invalid_choice(chosen, experts)
    if found is None:
        return
    row, layer, choice = found
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
    progress: Callable[[int, int], None] | None = None,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """T · f of one instruction after the other, in the order of their rows.

    Yields:
        k, an index into `spans`, and uint32 (moe_layer, expert), an array that is not used again.
    """
    source = _stored if archive.granularity == "count" else _counted
    return source(archive, spans, moe, progress, block_bytes)


def _counted(
    archive: Archive,
    spans: RowSpans,
    moe: MoeInfo,
    progress: Callable[[int, int], None] | None,
    block_bytes: int,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    counts = np.zeros((len(moe.layer_ids), moe.experts), dtype=np.uint32)
    for part in parts(archive, spans, read_route_blocks(archive, spans, block_bytes), progress):
        assert part.block.experts is not None  # noqa: S101  (read_route_blocks read them)
        chosen = part.block.experts[part.rows]
        check_choices(archive, part, chosen, moe.experts, moe.layer_ids)
        add_choice_counts(part.counted(chosen), counts)
        if part.last:
            yield part.k, counts
            counts = np.zeros_like(counts)


def _stored(
    archive: Archive,
    spans: RowSpans,
    moe: MoeInfo,
    progress: Callable[[int, int], None] | None,
    block_bytes: int,
) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    at, total = 0, int(spans.tokens.sum())
    for block in read_count_blocks(archive, spans.instruction, "router/count", block_bytes):
        while at < len(spans) and spans.instruction[at] < block.stop:
            index, tokens = int(spans.instruction[at]), int(spans.tokens[at])
            counts: NDArray[np.uint32] = block.counts[index - block.start]
            sums = counts.sum(axis=1, dtype=np.int64)
            if (sums != tokens * moe.experts_per_token).any() or counts.max() > tokens:
                raise DamagedArchiveError(
                    f"router/count of {archive.instructions.id[index]!r} in {archive.path} must add up to "
                    f"{moe.experts_per_token} choices at each of its {tokens} rows in every layer; it does not. "
                    "Run `sparcom verify`, then extract the archive again"
                )
            yield at, counts.copy()
            at += 1
        if progress is not None:
            progress(int(spans.tokens[:at].sum()), total)
