"""Every tolerance of a comparison, once. Used by `sparcom verify`, `sparcom selftest` and the tests.

Keys are the model's dtype. A dtype without an entry has no tolerance: nothing may differ.
"""

from __future__ import annotations

ROUNDINGS = 256.0
"""Rounding bound of a gate, or of a router's logit, in units of eps·Σ|x||W|: an allowance for all layers before it.

Measured on the MoE model made of SmolLM2, float32: router logits of most tokens lie within 7 units, 1 of 9,564 at 172.
"""
DIFFERING_BITS = {"float32": 3e-6, "float16": 4e-3, "bfloat16": 2e-2}
"""Share of bits that may differ between two correct computations in one dtype.

Measured on SmolLM2 in float32: 0.34 to 0.44 in 10⁶. A row of another token differs in about half of its bits.
"""
DIFFERING_BITS_BETWEEN_RANKS = 1e-5
"""The same for float32 between one rank and several, whose sums are added in another order."""
DIFFERING_BITS_FROM_FLOAT32 = {"float32": DIFFERING_BITS["float32"], "bfloat16": 3e-2}
"""The same between a dtype and transformers in float32. bfloat16: 0.4 % measured with two layers."""

# Routes against transformers. Measured in 16 bits between transformers in that dtype and in float32, tiny models.

TIE = {"float32": 1e-6, "float16": 8e-3, "bfloat16": 6.6e-2}
"""Difference of two ranked scores that rounding may swap; times max(1, score) if they are no probabilities."""
TIE_SHARE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 0.3}
"""Relative difference of two probabilities that tie. At most 0.5 % of top-k sets of eleven families stay unexplained
with it, and the fewest sets with a wrong expert pass (8 % at most)."""
WEIGHT_TOLERANCE = {"float32": 1e-5, "float16": 4e-2, "bfloat16": 0.25}
"""Difference of two top-k weights. In 16 bits 999 of 1,000 weights keep to it."""
UNEXPLAINED_SHARE = {"float16": 1e-2, "bfloat16": 1e-2}
"""Share of top-k sets, and of weights, that may stay unexplained: up to 1 in 200 sets was measured."""

# Routes of two runs of one engine: with other batches, other graphs, or as prompt and as response.

DIFFERING_ROUTES_BETWEEN_RUNS = {"float32": 1e-3, "bfloat16": 2e-2}
"""Share of top-k sets that may differ. A row of another token has nearly all of its experts wrong."""
WEIGHT_TOLERANCE_BETWEEN_RUNS = {"float32": 1e-5, "bfloat16": 5e-2}
"""Difference of two top-k weights of the same experts."""
DIFFERING_WEIGHTS_BETWEEN_RUNS = {"float32": 1e-4, "bfloat16": 1e-2}
"""Share of weights that may be further apart."""


def allowed(share: float, total: int) -> float:
    """Return how many of `total` comparisons may differ: `share` of them, and always one."""
    return max(1.0, share * total)
