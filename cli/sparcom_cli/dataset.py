"""`sparcom dataset`: build the instruction set, check any file of instructions, let people judge them.

Each command stands in a file of its own; what they need beyond a plain install is imported when they run.
"""

from __future__ import annotations

import click


@click.group()
def dataset() -> None:
    """Build, check and annotate files of instructions."""
