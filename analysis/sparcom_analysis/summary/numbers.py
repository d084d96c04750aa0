"""Numbers as JSON has them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nulls(values: NDArray[np.float64] | np.float64 | float) -> Any:
    """A number or nested lists of them with None for NaN."""
    held = np.array(values, dtype=object)
    held[np.isnan(values)] = None
    return held.tolist()
