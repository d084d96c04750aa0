"""Write tests/data/golden/v1.zarr and v1-count.zarr, the archives that every later release must still read.

Run once per format version: `python tests/data/make_golden.py`. It never replaces existing archives: one written by
this release proves nothing about old ones. The constants of test_golden.py belong to the committed files.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr

from sparcom_data.schema.metadata import Granularity
from sparcom_data.storage import DurableStore
from sparcom_data.testing import write_random_archive

FOLDER = Path(__file__).parent / "golden"
GOLDEN: dict[Path, Granularity] = {FOLDER / "v1.zarr": "token", FOLDER / "v1-count.zarr": "count"}
TEXTS = ["plain", "Grüße aus Köln", "日本語の指示", "🧠 → 🔬", "two\nlines\tand a \0", "e\u0301 is not é"]
RESPONSES = ["", "", "", "はい", "", ""]


def make_golden(path: Path, granularity: Granularity) -> None:
    """Write six instructions in two categories, number 4 failed: two layers, 11 neurons; chunks of 8 rows, 4 counts."""
    write_random_archive(
        path, per_category=3, layers=2, neurons=11, seed=20260101, failed=(4,), granularity=granularity
    )
    for name, values in {"text": TEXTS, "response": RESPONSES}.items():
        column = zarr.open_group(DurableStore(path), mode="r+")[f"instruction/{name}"]
        assert isinstance(column, zarr.Array)
        column[:] = np.array(values, dtype=np.dtypes.StringDType())


if __name__ == "__main__":
    missing = {path: granularity for path, granularity in GOLDEN.items() if not path.exists()}
    if not missing:
        raise SystemExit(f"{', '.join(map(str, GOLDEN))} already exist and are never replaced")
    for path, granularity in missing.items():
        make_golden(path, granularity)
