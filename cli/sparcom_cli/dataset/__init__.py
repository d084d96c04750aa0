"""`sparcom dataset`: build the instruction set, check any file of instructions, let people judge them.

Each command stands in a file of its own; what they need beyond a plain install is imported when they run.
"""

from __future__ import annotations

import click

from sparcom_cli.dataset.annotate import agreement, annotate
from sparcom_cli.dataset.build import build
from sparcom_cli.dataset.check import check


@click.group()
def dataset() -> None:
    """Build, check and annotate files of instructions."""


dataset.add_command(build)
dataset.add_command(check)
dataset.add_command(annotate)
dataset.add_command(agreement)
