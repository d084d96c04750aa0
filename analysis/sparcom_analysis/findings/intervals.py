"""Says where intervals are from fewer draws than their confidence needs. From metrics.json alone."""

from __future__ import annotations

import math

from sparcom_analysis.schema.metrics import Metrics


def interval_caveat(metrics: Metrics) -> str:
    """That the ends are the extremes of the draws, and what to give instead; empty where draws lie beyond both ends."""
    part = metrics.intervals
    if part is None:
        return ""
    needed = math.ceil(round(2 / (1 - part.confidence), 6))  # one draw below the interval and one above
    share = f"{100 * part.confidence:.10g} %"
    if part.resamples < needed:
        return (
            f"An interval of {share} needs {needed:,} resamples, so that some lie beyond its ends; here are "
            f"{part.resamples:,}, and its ends are about the lowest and the highest of them. Give more --resamples, or "
            "a smaller --confidence."
        )
    general = None if metrics.general_unique is None else metrics.general_unique.resamples
    if general is None or general >= needed:
        return ""
    return (
        f"An interval of {share} needs {needed:,} resamples, so that some lie beyond its ends; those of general and "
        f"unique components are from {general:,}, and their ends are about the lowest and the highest of them. Give a "
        "smaller --confidence."
    )
