"""Shows what a command waits for, on standard error: a spinner on a terminal, one line elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Show `what` while the block runs."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        click.echo(f"{what} ...", err=True)
        yield
