"""Turn a comparison with transformers into checks: one sentence of totals each, and findings on failure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparcom_data.verify import Check
from sparcom_verification.limits import DIFFERING_BITS, ROUNDINGS, TIE, UNEXPLAINED_SHARE

if TYPE_CHECKING:
    from sparcom_verification.reference.comparison import CountComparison, MaskComparison
    from sparcom_verification.reference.experts import ExpertComparison


def judge_masks(result: MaskComparison, dtype: str) -> list[Check]:
    """Return the check of bits; for MoE models also those of routes and weights."""
    kinds = ""
    if experts := result.experts:
        parts = {"dense": result.dense, "routed": experts.experts, "shared": experts.shared}
        kinds = f" ({', '.join(f'{name} {part.bits:,}' for name, part in parts.items() if part.bits)})"
    check = _judge(result, "bits", f"{result.bits:,} bits{kinds}", f"{result.differing} differ", dtype)
    return [check, _routes(experts), _weights(experts)] if experts else [check]


def judge_counts(result: CountComparison, dtype: str) -> list[Check]:
    """Return the check of counts."""
    differing = f"{result.differing} differ, by {result.difference} in total"
    return [_judge(result, "counts", f"{result.counts:,} counts", differing, dtype)]


def _judge(result: MaskComparison | CountComparison, unit: str, compared: str, differing: str, dtype: str) -> Check:
    limit, share = f"{DIFFERING_BITS.get(dtype, 0.0) * 1e6:g}", f"{result.share * 1e6:.2f} in 10⁶ bits"
    check = Check(
        "reference",
        f"{result.instructions} instructions, {result.rows:,} rows, {compared} against transformers: {differing} "
        f"({share}, limit {limit}); {result.unexplained} of them are not explained by gates within "
        f"{ROUNDINGS:g}·eps·Σ|x||W| of zero",
    )
    if result.share > DIFFERING_BITS.get(dtype, 0.0):
        check.findings.append(f"{share} differ; the limit is {limit}")
    if result.unexplained:
        problem = f"{result.unexplained} differing {unit} are not explained by rounding"
        check.findings.append(problem + _examples(result.examples, result.unexplained))
    return check


def _examples(examples: list[str], count: int) -> str:
    return f": {'; '.join(examples)}{'; …' if count > len(examples) else ''}" if examples else ""


def _routes(result: ExpertComparison) -> Check:
    check = Check(
        "routes",
        f"{result.routes:,} top-k sets of experts (tokens × layers) against transformers: {result.reordered:,} list "
        f"the same experts in another order; {result.ties} are ties within {TIE.get(result.dtype, 0.0):g}, which the "
        f"reference followed; {result.unexplained} hold other experts",
    )
    if result.unjudged:
        check.looked_at += (
            f". Ties in layers {result.unjudged} cannot be judged, since the reference does not expose their router "
            "scores: every difference there counts as other experts"
        )
    if result.unexplained > UNEXPLAINED_SHARE.get(result.dtype, 0.0) * result.routes:
        check.findings.append(
            f"{result.unexplained} top-k sets hold experts that the reference's router does not pick; this may cause "
            f"differences in later layers{_examples(result.route_examples, result.unexplained)}"
        )
    return check


def _weights(result: ExpertComparison) -> Check:
    unexplained, tolerance = result.weights_unexplained, result.weight_tolerance
    check = Check(
        "weights",
        f"{result.weights:,} top-k weights against transformers: the largest error is "
        f"{result.largest_weight_error:.1e}; {result.weights_out_of_tolerance} are off by more than {tolerance:g}, "
        f"{unexplained} of them by more than the router's rounding explains",
    )
    if unexplained > UNEXPLAINED_SHARE.get(result.dtype, 0.0) * result.weights:
        problem = f"{unexplained} weights are off by more than {tolerance:g} and by more than rounding explains"
        check.findings.append(problem + _examples(result.weight_examples, unexplained))
    return check
