"""The wait policy of torch's OpenMP threads in commands that compute with torch."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let idle OpenMP threads sleep unless the user chose a policy. Call it before torch is imported.

    Spinning threads take the core that the others need on a busy machine: `sparcom model moefy` on two busy cores took
    39 s (58 s of CPU time) with sleeping threads, 122 s (113 s) with spinning ones.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
