"""How fine-tuning shifts the experts that instructions use: equations 11 and 12 of a base model and its tuned twin.

Instructions are matched by id (`twins`) and must be complete in both archives; those of one alone are counted and left
out, so that both means are over the same instructions. Their categories are the base archive's. The shift of an expert
is its mean frequency in the tuned model minus that in the base model: over a layer shifts add up to 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparcom_analysis.measures.experts import (
    CategoryExperts,
    InstructionExperts,
    TopExperts,
    category_experts,
    top_experts,
)
from sparcom_analysis.reading.routes import require_router
from sparcom_analysis.tuned.twins import Twins, match_twins
from sparcom_data.archive import Archive
from sparcom_data.errors import UnsupportedArchiveError


@dataclass(frozen=True, slots=True)
class ExpertShift:
    """Expert frequencies before and after tuning, of the m instructions that are complete in both archives.

    matched: m.
    base, tuned: equation 12. base_top, tuned_top: table 6 of each. only_base, only_tuned: instructions used that the
    other archive lacks or did not complete. different_rows: of the m, those whose number of tokens differs.
    """

    matched: int
    only_base: int
    only_tuned: int
    different_rows: int
    base: CategoryExperts
    tuned: CategoryExperts
    base_top: TopExperts
    tuned_top: TopExperts

    @property
    def shift(self) -> NDArray[np.float64]:
        """float64 (category, layer, expert): tuned minus base."""
        return self.tuned.mean - self.base.mean

    @property
    def overall_shift(self) -> NDArray[np.float64]:
        """float64 (layer, expert): the same over all instructions."""
        return self.tuned.overall - self.base.overall

    @property
    def moved(self) -> NDArray[np.float64]:
        """float64 (category, layer): half the sum of absolute shifts over experts, choices a token that moved."""
        moved: NDArray[np.float64] = np.abs(self.shift).sum(axis=-1) / 2
        return moved

    @property
    def kept(self) -> NDArray[np.bool_]:
        """bool (category, layer, rank): whether that one of the base model's top experts is also among the tuned's."""
        return _among(self.base_top.expert, self.tuned_top.expert)

    @property
    def overall_kept(self) -> NDArray[np.bool_]:
        """bool (layer, rank): the same over all instructions."""
        return _among(self.base_top.overall_expert, self.tuned_top.overall_expert)


def _among(experts: NDArray[np.intp], others: NDArray[np.intp]) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = (experts[..., :, None] == others[..., None, :]).any(axis=-1)
    return found


def check_twins(base: Archive, tuned: Archive) -> None:
    """Refuse two archives whose experts are not those of the same model before and after tuning.

    Raises:
        UnsupportedArchiveError: one has no router, or layers, experts or choices differ.
    """
    said = []
    for archive in (base, tuned):
        moe = require_router(archive)
        said.append(f"{moe.experts} experts, {moe.experts_per_token} a token, in layers {moe.layer_ids}")
    if said[0] != said[1]:
        raise UnsupportedArchiveError(
            f"base and tuned model must have the same experts in the same layers; {base.path} has {said[0]}; "
            f"{tuned.path} has {said[1]}. Give archives of a model and of its own fine-tuned version"
        )


def expert_shift(base: InstructionExperts, tuned: InstructionExperts, twins: Twins | None = None) -> ExpertShift:
    """How tuning shifts f over the instructions of both; see `ExpertShift`.

    Args:
        twins: which belong together, where `match_twins` has found it already.

    Raises:
        IncompleteArchiveError: no instruction is complete in both.
        UnsupportedArchiveError: they are not of the same experts and rows.
    """
    found = match_twins(base, tuned) if twins is None else twins
    left = _only(base, found.base)
    right = replace(_only(tuned, found.tuned), categories=left.categories)
    means = [category_experts(item) for item in (left, right)]
    return ExpertShift(
        matched=len(found),
        only_base=found.only_base,
        only_tuned=found.only_tuned,
        different_rows=found.different_rows,
        base=means[0],
        tuned=means[1],
        base_top=top_experts(means[0]),
        tuned_top=top_experts(means[1]),
    )


def _only(experts: InstructionExperts, chosen: NDArray[np.intp]) -> InstructionExperts:
    """These instructions alone, in this order."""
    return replace(
        experts,
        instruction=experts.instruction[chosen],
        ids=[experts.ids[k] for k in chosen],
        categories=[experts.categories[k] for k in chosen],
        tokens=experts.tokens[chosen],
        counts=experts.counts[chosen],
    )
