"""Turn a comparison with transformers into checks: one sentence of totals each, and findings if something is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparcom_data.verify import Check
from sparcom_verification.limits import DIFFERING_BITS, ROUNDINGS, TIE, UNEXPLAINED_SHARE

if TYPE_CHECKING:
    from sparcom_verification.reference.comparison import CountComparison, MaskComparison
    from sparcom_verification.reference.experts import ExpertComparison


def judge_masks(result: MaskComparison, dtype: str) -> list[Check]:
    """Return the check of bits; for MoE models also those of routes and weights."""
    check = _judge(
        result,
        "bits",
        f"{result.bits:,} bits{_kinds(result)} against transformers: {result.differing} differ "
        f"({_share(result, dtype)}), of which {result.unexplained} have a gate further from zero than",
        dtype,
    )
    return [check] if result.experts is None else [check, _routes(result.experts), _weights(result.experts)]


def judge_counts(result: CountComparison, dtype: str) -> list[Check]:
    """Return the check of counts."""
    totals = (
        f"{result.counts:,} counts against transformers: {result.differing} differ, by {result.difference} in all "
        f"({_share(result, dtype, ' bits')}), of which {result.unexplained} by more than the rows with a gate within"
    )
    return [_judge(result, "counts", totals, dtype)]


def _judge(result: MaskComparison | CountComparison, unit: str, totals: str, dtype: str) -> Check:
    limit = DIFFERING_BITS.get(dtype, 0.0)
    start = f"{result.instructions} instructions, {result.rows:,} rows"
    check = Check("reference", f"{start}, {totals} {ROUNDINGS:g}·eps·Σ|x||W|{' of zero' * (unit == 'counts')}")
    if result.share > limit:
        check.findings.append(f"{result.share * 1e6:.2f} in 10⁶ bits differ; at most {limit * 1e6:g} may")
    if result.unexplained:
        check.findings.append(
            f"{result.unexplained} differing {unit} are not explained by rounding"
            + _examples(result.examples, result.unexplained)
        )
    return check


def _share(result: MaskComparison | CountComparison, dtype: str, unit: str = "") -> str:
    return f"{result.share * 1e6:.2f} in 10⁶{unit}, at most {DIFFERING_BITS.get(dtype, 0.0) * 1e6:g} allowed"


def _kinds(result: MaskComparison) -> str:
    if result.experts is None:
        return ""
    kinds = {"dense": result.dense, "routed": result.experts.experts, "shared": result.experts.shared}
    return f" ({', '.join(f'{name} {part.bits:,}' for name, part in kinds.items() if part.bits)})"


def _examples(examples: list[str], count: int) -> str:
    return f": {'; '.join(examples)}{'; …' if count > len(examples) else ''}" if examples else ""


def _routes(result: ExpertComparison) -> Check:
    check = Check(
        "routes",
        f"{result.routes:,} top-k sets of experts (tokens × layers) against transformers: {result.reordered:,} list "
        f"the same experts in another order; {result.ties} are ties within {TIE.get(result.dtype, 0.0):g}, which the "
        f"reference followed; {result.unexplained} are of other experts",
    )
    if result.unjudged:
        check.looked_at += (
            f". Ties in layers {result.unjudged} cannot be judged, since the reference does not show the scores that "
            "their routers rank: every difference there counts as other experts"
        )
    if result.unexplained > UNEXPLAINED_SHARE.get(result.dtype, 0.0) * result.routes:
        check.findings.append(
            f"{result.unexplained} top-k sets are of experts that the reference's router does not pick; differences in "
            f"later layers may follow from that{_examples(result.route_examples, result.unexplained)}"
        )
    return check


def _weights(result: ExpertComparison) -> Check:
    unexplained, tolerance = result.weights_unexplained, result.weight_tolerance
    check = Check(
        "weights",
        f"{result.weights:,} top-k weights against transformers: the largest error is "
        f"{result.largest_weight_error:.1e}; {result.weights_out_of_tolerance} are off by more than {tolerance:g}, "
        f"{unexplained} of them by more than rounding of the router explains",
    )
    if unexplained > UNEXPLAINED_SHARE.get(result.dtype, 0.0) * result.weights:
        problem = f"{unexplained} weights are off by more than {tolerance:g} and rounding"
        check.findings.append(problem + _examples(result.weight_examples, unexplained))
    return check
