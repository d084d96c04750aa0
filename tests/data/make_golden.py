"""Writes tests/data/golden/v1.zarr, the archive that every later release must still read.

Run once for a format version: `python tests/data/make_golden.py`. It refuses to replace what is there: an archive that
this release wrote itself proves nothing about old ones. The constants of test_golden.py belong to the committed files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from sparcom_data.storage import DurableStore
from sparcom_data.testing import write_random_archive

GOLDEN = Path(__file__).parent / "golden" / "v1.zarr"
TEXTS = ["plain", "Grüße aus Köln", "日本語の指示", "🧠 → 🔬", "two\nlines\tand a \0", "e\u0301 is not é"]
RESPONSES = ["", "", "", "はい", "", ""]


def make_golden(path: Path) -> None:
    """Six instructions of two categories, number 4 failed; two layers of 11 neurons; chunks of 8 rows."""
    write_random_archive(path, per_category=3, layers=2, neurons=11, seed=20260101, failed=(4,))
    for name, values in {"text": TEXTS, "response": RESPONSES}.items():
        column = zarr.open_group(DurableStore(path), mode="r+")[f"instruction/{name}"]
        assert isinstance(column, zarr.Array)
        column[:] = np.array(values, dtype=np.dtypes.StringDType())


if __name__ == "__main__":
    if GOLDEN.exists():
        raise SystemExit(f"{GOLDEN} exists and is kept")
    make_golden(GOLDEN)
