"""What was read and how: the attributes of the root of a run."""

from __future__ import annotations

from typing import Any

from sparcom_analysis.isn import IsnSets
from sparcom_analysis.options import Options
from sparcom_data.archive import Archive


def run_facts(archives: list[Archive], isns: dict[Any, list[IsnSets]], options: Options) -> dict[str, Any]:
    """Return the attributes: `archive`, `tuned`, `settings`, `versions`, `instructions`, `warnings`."""
    return {"warnings": []}
