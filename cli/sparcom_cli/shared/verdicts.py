"""What `sparcom verify --reference` says of a comparison: sentences, and findings where something is wrong.

Knows the results of sparcom_verification.reference.masks and reference_counts; compares nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparcom_data.verify import Check

if TYPE_CHECKING:
    from sparcom_verification.reference.counts import CountComparison
    from sparcom_verification.reference.experts import ExpertComparison
    from sparcom_verification.reference.masks import Comparison

MAX_SHARE = {"float32": 3e-6, "bfloat16": 2e-2, "float16": 4e-3}
# Share of choices, and of weights, that may be off. In 16 bits the inputs of a layer are off by more than its own
# rounding: of the tiny models' choices up to 1 in 200 between transformers in that type and in float32.
MAX_STRAY = {"bfloat16": 1e-2, "float16": 1e-2}


def judge_masks(result: Comparison, dtype: str) -> list[Check]:
    """Of bits; and of routes and weights where the model has mixtures of experts."""
    from sparcom_verification.reference.bits import ROUNDINGS

    limit = MAX_SHARE.get(dtype, 0.0)
    check = Check(
        "reference",
        f"{result.instructions} instructions, {result.rows:,} rows, {result.bits:,} bits{_kinds(result)} against "
        f"transformers: {result.differing} differ ({result.share * 1e6:.2f} in 10⁶, at most {limit * 1e6:g} allowed), "
        f"of which {result.unexplained} have a gate further from zero than {ROUNDINGS:g}·eps·Σ|x||W|",
    )
    if result.share > limit:
        check.findings.append(f"{result.share * 1e6:.2f} in 10⁶ bits differ; at most {limit * 1e6:g} may")
    if result.unexplained:
        check.findings.append(
            f"{result.unexplained} differing bits are not explained by rounding"
            + _such_as(result.examples, result.unexplained)
        )
    return [check] if result.experts is None else [check, _routes(result.experts), _weights(result.experts)]


def _kinds(result: Comparison) -> str:
    if result.experts is None:
        return ""
    kinds = {"dense": result.dense, "routed": result.experts.experts, "shared": result.experts.shared}
    return f" ({', '.join(f'{name} {part.bits:,}' for name, part in kinds.items() if part.bits)})"


def _such_as(examples: list[str], count: int) -> str:
    """Name some of `count` things that are wrong."""
    return f": {'; '.join(examples)}{'; …' if count > len(examples) else ''}" if examples else ""


def _routes(result: ExpertComparison) -> Check:
    from sparcom_verification.reference.choice import TIE

    check = Check(
        "routes",
        f"{result.routes:,} top-k sets of experts (tokens × layers) against transformers: {result.reordered:,} list "
        f"the same experts in another order; {result.ties} are of experts whose ranked scores tie within "
        f"{TIE.get(result.dtype, 0.0):g}, and the reference followed them; {result.unexplained} are of other experts",
    )
    if result.unjudged:
        check.looked_at += (
            f". Ties in layers {result.unjudged} cannot be judged, since the reference does not show the scores that "
            "their routers rank: every difference there counts as other experts"
        )
    if result.unexplained > MAX_STRAY.get(result.dtype, 0.0) * result.routes:
        check.findings.append(
            f"{result.unexplained} top-k sets are of experts that the reference's router does not pick; what differs "
            f"in the layers after them may follow from that{_such_as(result.route_examples, result.unexplained)}"
        )
    return check


def _weights(result: ExpertComparison) -> Check:
    check = Check(
        "weights",
        f"{result.weights:,} combine weights against transformers: the worst is off by {result.largest_weight:.1e}, "
        f"{result.apart_weights} are by more than {result.weight_tolerance:g}, of which {result.off_weights} by more "
        "than rounding of the router explains",
    )
    if result.off_weights > MAX_STRAY.get(result.dtype, 0.0) * result.weights:
        check.findings.append(
            f"{result.off_weights} weights are off by more than {result.weight_tolerance:g} and rounding"
            + _such_as(result.weight_examples, result.off_weights)
        )
    return check


def judge_counts(result: CountComparison, dtype: str) -> list[Check]:
    """Of counts."""
    from sparcom_verification.reference.bits import ROUNDINGS

    limit = MAX_SHARE.get(dtype, 0.0)
    check = Check(
        "reference",
        f"{result.instructions} instructions, {result.rows:,} rows, {result.counts:,} counts against transformers: "
        f"{result.differing} differ, by {result.difference} in all ({result.share * 1e6:.2f} in 10⁶ bits, at most "
        f"{limit * 1e6:g} allowed), of which {result.unexplained} by more than the rows whose gate is within "
        f"{ROUNDINGS:g}·eps·Σ|x||W| of zero",
    )
    if result.share > limit:
        check.findings.append(f"counts differ by {result.share * 1e6:.2f} in 10⁶ bits; at most {limit * 1e6:g} may")
    if result.unexplained:
        check.findings.append(
            f"{result.unexplained} differing counts are not explained by rounding"
            + _such_as(result.examples, result.unexplained)
        )
    return [check]
