"""How torch's threads wait for one another in commands that compute with it themselves."""

from __future__ import annotations

import os


def wait_asleep() -> None:
    """Let them sleep, where the user has not said otherwise; to be called before torch is imported.

    Awake they take the core that the others need wherever the machine has anything else to do: `sparcom model moefy`
    on two busy cores took 39 s (58 s of CPU time) asleep, 122 s (113 s) awake.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
