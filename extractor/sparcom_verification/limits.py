"""All tolerances of comparisons, for `sparcom verify`, `sparcom selftest` and the tests.

Keys are the model's dtype. For a dtype without an entry nothing may differ.
"""

from __future__ import annotations

ROUNDINGS = 256.0
"""Rounding bound of a gate or of a router's logit, in units of eps·Σ|x||W|. It allows for all earlier layers.

Measured in float32 on the MoE model made from SmolLM2: router logits of most tokens within 7 units, 1 of 9,564 at 172.
"""
DIFFERING_BITS = {"float32": 3e-6, "float16": 4e-3, "bfloat16": 2e-2}
"""Fraction of bits that may differ between two correct computations in one dtype.

Measured in float32 on SmolLM2: 0.34 to 0.44 in 10⁶. The row of a wrong token differs in about half of its bits.
"""
DIFFERING_BITS_BETWEEN_RANKS = 1e-5
"""The same for float32, between one rank and several ranks, which add terms in another order."""
DIFFERING_BITS_AFTER_RESUME = 1e-6
"""The same for float32, between a run that was killed and resumed and an undisturbed one: batches differ."""
DIFFERING_BITS_FROM_FLOAT32 = {"float32": DIFFERING_BITS["float32"], "bfloat16": 3e-2}
"""The same between a dtype and transformers in float32. Measured for bfloat16 with two layers: 0.4 %."""
DIFFERING_BITS_IN_FP8 = 0.14
"""The same between FP8 weights and activations (e4m3) and transformers in float32. Emulated on a CPU with four layers:
7 % on average, 4 % in the first and 10 % in the last. The row of a wrong token differs in 54 %."""

# Routes against transformers. 16-bit limits: tiny models, measured between transformers in that dtype and in float32.

TIE = {"float32": 1e-6, "float16": 8e-3, "bfloat16": 6.6e-2}
"""Difference of two ranked scores that rounding may swap; times max(1, score) if they are not probabilities."""
TIE_SHARE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.3}
"""Relative difference of two tied probabilities. At this value, at most 0.5 % of the top-k sets of eleven families stay
unexplained, and the number of sets with a wrong expert that pass is smallest (at most 8 %)."""
WEIGHT_TOLERANCE = {"float32": 1e-5, "float16": 4e-2, "bfloat16": 0.25}
"""Difference of two top-k weights. In 16 bits, 999 of 1,000 weights are within it."""
UNEXPLAINED_SHARE = {"float16": 1e-2, "bfloat16": 1e-2}
"""Fraction of top-k sets, and of weights, that may stay unexplained. Measured: up to 1 in 200 sets."""

# Routes of two runs of one engine: with other batches or graphs, or as prompt and as response.

DIFFERING_ROUTES_BETWEEN_RUNS = {"float32": 1e-3, "bfloat16": 2e-2}
"""Fraction of top-k sets that may differ. In the row of a wrong token nearly all experts differ."""
WEIGHT_TOLERANCE_BETWEEN_RUNS = {"float32": 1e-5, "bfloat16": 5e-2}
"""Difference of two top-k weights of the same experts."""
DIFFERING_WEIGHTS_BETWEEN_RUNS = {"float32": 1e-4, "bfloat16": 1e-2}
"""Fraction of weights that may differ by more."""


def allowed(share: float, total: int) -> float:
    """Return how many of `total` comparisons may differ: `share` of them, but at least one."""
    return max(1.0, share * total)
