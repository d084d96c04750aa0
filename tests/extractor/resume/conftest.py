"""Put the folders of `stand_in` and `undisturbed` on the path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "run"), str(Path(__file__).parent)]
