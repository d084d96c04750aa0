"""What parts of metrics.json say of their intervals: low and high beside a matrix, and how they were drawn."""

from __future__ import annotations

from pydantic import Field

from sparcom_analysis.schema.part import Part

Values = list[float | None]


class IntervalBounds(Part):
    """Base of parts with a matrix whose cells have intervals: over categories, or category by layer."""

    low: list[Values] | None = Field(
        default=None,
        description="Lower ends of the bootstrap intervals, cell by cell; null without, as with one instruction.",
    )
    high: list[Values] | None = Field(default=None, description="Their upper ends.")


class ResamplingFacts(Part):
    """How all intervals were drawn: `intervals`."""

    resamples: int = Field(description="How often instructions were drawn with replacement within their categories.")
    confidence: float = Field(description="Share of the resampled means between `low` and `high`.")
    seed: int = Field(description="Of the draws.")
