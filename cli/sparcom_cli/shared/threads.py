"""The wait policy of torch's OpenMP threads in commands that compute with torch."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let idle OpenMP threads sleep unless the user chose a policy. Call it before torch is imported.

    On a busy machine, spinning threads hold cores that others need. On two busy cores, `sparcom model moefy` took 39 s
    (58 s of CPU time) with sleeping threads and 122 s (113 s) with spinning threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
